"""Where documents live: registry, databases, collections, and the driver seam."""

from mongoz.connection.database import Collection, Database
from mongoz.connection.registry import Registry

__all__ = ["Collection", "Database", "Registry"]
