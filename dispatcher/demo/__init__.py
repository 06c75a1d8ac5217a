"""`dispatcher demo`: a foreign client writes, a dispatcher delivers, and the books must balance."""

from dispatcher.demo.run import demonstrate

__all__ = ["demonstrate"]
