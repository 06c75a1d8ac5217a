"""A daemon that delivers mongoz signals for writes of other clients."""

from typing import Any

__all__ = ["__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # lazily: the command must react to Ctrl-C before everything is loaded
        from mongoz import __version__  # noqa: PLC0415 - see above

        return __version__
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
