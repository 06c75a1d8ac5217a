"""`dispatcher demo`: another client writes, a dispatcher delivers, and no delivery may be missing."""

from dispatcher.demo.run import demonstrate

__all__ = ["demonstrate"]
