"""The public import path of the settings; the code is in `mongoz.settings`.

In this package `settings` is the object, although the package has a module of this name. So `import
mongoz.conf.settings` and `from mongoz.conf import settings` both give an object with the settings as attributes.
"""

from mongoz.conf.settings import MongozSettings, settings

__all__ = ["MongozSettings", "settings"]
