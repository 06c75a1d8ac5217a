"""Documented import path of the settings; the code is in `mongoz.settings`.

`settings` here is the object, though there is a module of that name beside it: `import mongoz.conf.settings` and
`from mongoz.conf import settings` both lead to what has the settings as attributes.
"""

from mongoz.conf.settings import MongozSettings, settings

__all__ = ["MongozSettings", "settings"]
