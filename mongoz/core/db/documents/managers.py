"""The public import path of managers; the code is in `mongoz.queries`."""

from mongoz.queries import Manager, QuerySetManager

__all__ = ["Manager", "QuerySetManager"]
