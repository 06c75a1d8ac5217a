"""The public import path of the settings; the code is in `mongoz.settings` and `mongoz.settings_class`."""

from mongoz.settings import settings
from mongoz.settings_class import MongozSettings

__all__ = ["MongozSettings", "settings"]
