"""Settings of the ODM.

The environment variable `MONGOZ_SETTINGS_MODULE` contains the name of a subclass of `MongozSettings`, in the form
`package.module.Class`. Without the variable the defaults apply. `settings` is lazy: nothing is imported before the
first attribute is read.
"""

import importlib
import os
from collections.abc import Mapping
from functools import cache, cached_property
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from mongoz.exceptions import ImproperlyConfigured, OperatorInvalid
from mongoz.synonyms import OF_LOOKUPS, did_you_mean

__all__ = ["Defaults", "provide_operators", "settings"]


# Lookup -> operator of Q. Q has no operator for a whole day; the closest to `date` is equality.
_FILTER_OPERATORS: Final = {
    "exact": "eq",
    "neq": "neq",
    "in": "in_",
    "not_in": "not_in",
    "contains": "contains",
    "icontains": "icontains",
    "startswith": "startswith",
    "istartswith": "istartswith",
    "endswith": "endswith",
    "iendswith": "iendswith",
    "pattern": "pattern",
    "gt": "gt",
    "gte": "gte",
    "lt": "lt",
    "lte": "lte",
    "date": "eq",
    "where": "where",
    "not": "not_",
    "exists": "exists",
    "asc": "asc",
    "desc": "desc",
}


class Defaults(BaseModel):
    """The settings with their default values, see `MongozSettings`.

    This class does not need pydantic-settings, which takes 0.1 s and 10 MB to import.
    """

    model_config = ConfigDict(extra="allow")

    parsed_ids: tuple[str, ...] = ("id", "_id", "pk")
    lookup_prefix: str = "__"
    allow_javascript: bool = False
    filter_operators: Mapping[str, str] = Field(default_factory=lambda: dict(_FILTER_OPERATORS))

    def get_operator(self, name: str) -> Any:
        """The operator of a lookup: `get_operator("exact")` is `Q.eq`.

        Raises:
            OperatorInvalid: there is no such lookup.
        """
        if name not in self.filter_operators:
            raise OperatorInvalid(
                f"There is no lookup {name!r}.{did_you_mean(name, self.operators, OF_LOOKUPS)} "
                f"Valid are: {self.stringified_operators}."
            )
        return getattr(_operators[-1], self.filter_operators[name])

    @property
    def operators(self) -> list[str]:
        """The names of all lookups."""
        return list(self.filter_operators)

    @property
    def stringified_operators(self) -> str:
        """The names of all lookups in one string, separated by commas."""
        return ", ".join(self.operators)


_operators: list[type] = []


def provide_operators(operators: type) -> None:
    """Set the class whose operators `get_operator` returns.

    `mongoz.queries` calls this function, because this module can't import `mongoz.queries`.
    """
    _operators.append(operators)


@cache
def _load() -> Defaults:
    path = os.environ.get("MONGOZ_SETTINGS_MODULE")
    if not path:
        return Defaults()
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImproperlyConfigured(
            f"MONGOZ_SETTINGS_MODULE={path!r} can't be imported ({error}); it must name a class "
            "as 'package.module.Class'."
        ) from error
    if not (isinstance(found, type) and issubclass(found, Defaults)):
        raise ImproperlyConfigured(f"MONGOZ_SETTINGS_MODULE={path!r} is no subclass of MongozSettings.")
    return found()


class _LazySettings:
    """Loads the settings when the first one is read."""

    @cached_property
    def parsed_ids(self) -> tuple[str, ...]:
        """Every update reads this setting, so it is cached: `__getattr__` takes much longer."""
        return _load().parsed_ids

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # test runners, copy and inspect look up dunders
            raise AttributeError(name)
        return getattr(_load(), name)

    def __repr__(self) -> str:
        return repr(_load())


settings = _LazySettings()
