"""The shop as a dispatcher serves it: `dispatcher run examples.shop.app:registry`.

Importing the receivers connects them to the documents; nothing else has to be done.
"""

from . import receivers
from .models import registry

__all__ = ["receivers", "registry"]
