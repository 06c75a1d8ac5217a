"""The public import path of the settings; the code is in `mongoz.settings`.

`settings` here is the object, although there is a module of this name: `import mongoz.conf.settings` and
`from mongoz.conf import settings` both give an object with the settings as attributes.
"""

from mongoz.conf.settings import MongozSettings, settings

__all__ = ["MongozSettings", "settings"]
