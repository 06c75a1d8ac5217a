"""Settings of the ODM.

`MONGOZ_SETTINGS_MODULE` names a subclass of `MongozSettings` as `package.module.Class`; without it the
defaults below hold. `settings` is lazy: nothing is imported before the first attribute is read.
"""

import importlib
import os
from functools import cache
from typing import Any

from pydantic_settings import BaseSettings, SettingsConfigDict

from mongoz.exceptions import ImproperlyConfigured

__all__ = ["MongozSettings", "settings"]


class MongozSettings(BaseSettings):
    """What an application may set, by subclassing.

    Attributes:
        parsed_ids: the names that stand for the primary key in filters.
        lookup_prefix: what separates a field from its lookup in keyword filters.
    """

    model_config = SettingsConfigDict(extra="allow")

    parsed_ids: tuple[str, ...] = ("id", "_id", "pk")
    lookup_prefix: str = "__"


@cache
def _load() -> MongozSettings:
    path = os.environ.get("MONGOZ_SETTINGS_MODULE")
    if not path:
        return MongozSettings()
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImproperlyConfigured(
            f"MONGOZ_SETTINGS_MODULE={path!r} can't be imported ({error}); it must name a class "
            "as 'package.module.Class'."
        ) from error
    if not (isinstance(found, type) and issubclass(found, MongozSettings)):
        raise ImproperlyConfigured(f"MONGOZ_SETTINGS_MODULE={path!r} is no subclass of MongozSettings.")
    return found()


class _LazySettings:
    """Stands in for the settings until somebody reads one."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_load(), name)

    def __repr__(self) -> str:
        return repr(_load())


settings = _LazySettings()
