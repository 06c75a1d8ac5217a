"""The public import path of the settings; the code is in `mongoz.settings`."""

from mongoz.settings import MongozSettings, settings

__all__ = ["MongozSettings", "settings"]
