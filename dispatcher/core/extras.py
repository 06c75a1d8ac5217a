"""The extras of the package."""


def how_to_install(extra: str) -> str:
    """The remedy for a missing extra. The package is in no registry, so the remedy names a checkout."""
    return f"pip install '.[{extra}]' (in a checkout of the repository)"
