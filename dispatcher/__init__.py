"""A daemon that delivers mongoz signals for writes that were made elsewhere."""

from mongoz import __version__

__all__ = ["__version__"]
