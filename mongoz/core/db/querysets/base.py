"""The public import path of managers and querysets; the code is in `mongoz.queries`."""

from mongoz.queries import Manager, QuerySet

__all__ = ["Manager", "QuerySet"]
