"""The application for a dispatcher: `dispatcher run examples.shop.app:registry`.

The import of the receivers connects them to the documents. Nothing else is needed.
"""

from . import receivers
from .models import registry

__all__ = ["receivers", "registry"]
