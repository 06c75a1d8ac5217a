"""The public import path of the registry; the code is in `mongoz.connection`."""

from mongoz.connection import Collection, Database, Registry

__all__ = ["Collection", "Database", "Registry"]
