"""The connection to MongoDB: registry, databases, collections, transactions, and adapters of the drivers."""

from mongoz.connection.database import Collection, Database
from mongoz.connection.registry import Registry

__all__ = ["Collection", "Database", "Registry"]
