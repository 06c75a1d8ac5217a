"""Extras of the package that may not be installed."""

__all__ = ["how_to_install"]


def how_to_install(extra: str) -> str:
    """The remedy for an extra that is not there. The package is in no registry, so it names a checkout."""
    return f"pip install '.[{extra}]' (in a checkout of the repository)"
