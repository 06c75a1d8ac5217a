"""The public import path of the settings; the code is in `mongoz.settings`.

The name `mongoz.conf.settings` means the object with the settings, although the package also has a module of this
name. So `import mongoz.conf.settings` and `from mongoz.conf import settings` both give this object.
"""

from mongoz.conf.settings import MongozSettings, settings

__all__ = ["MongozSettings", "settings"]
