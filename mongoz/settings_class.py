"""The class of an application's settings. It is imported when the application uses it."""

from pydantic_settings import BaseSettings, SettingsConfigDict

from mongoz.settings import Defaults

__all__ = ["MongozSettings"]


class MongozSettings(Defaults, BaseSettings):
    """The settings. Applications change them in a subclass.

    Attributes:
        parsed_ids: the names of the primary key in filters.
        lookup_prefix: the separator between a field and its lookup in keyword filters.
        filter_operators: the lookups of keyword filters -> operators of `Q`.
        allow_javascript: whether keyword filters may contain JavaScript, as `name__where="..."`. If it is True,
            and keywords come from a request, the sender of the request can run any JavaScript on the server.

    Examples:
        >>> class Settings(mongoz.MongozSettings):
        ...     lookup_prefix: str = "___"
        >>> # MONGOZ_SETTINGS_MODULE=shop.settings.Settings
    """

    model_config = SettingsConfigDict(extra="allow")
