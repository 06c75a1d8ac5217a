"""Checks that `import mongoz` finds the package of this dispatcher, and says how to install extras.

Another package is called `mongoz`, too. It has files of the same names. Python may find it instead of ours, or the
files of both may lie in one directory.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from dispatcher.exceptions import NotInstalled

# A module that only the package of this dispatcher has.
_OWN: Final = "installation.py"


def require_own_mongoz() -> None:
    """Require the package `mongoz` of this dispatcher, without importing it.

    Raises:
        NotInstalled: no package `mongoz` is found, another one is found, or the files of both are mixed.
    """
    found = find_spec("mongoz")
    if found is None or not found.submodule_search_locations:
        raise NotInstalled("There is no package mongoz.", remedy="Install mongoz-dispatcher again.")
    directory = Path(found.submodule_search_locations[0])
    record = next(directory.parent.glob("mongoz-*.dist-info"), None)
    if record is not None or not (directory / _OWN).is_file():
        name = "mongoz" if record is None else record.name
        raise NotInstalled(
            f"In {directory} are files of another package, {name}. It is imported under the same name as the "
            "mongoz of this dispatcher.",
            remedy="Uninstall both with `pip uninstall mongoz mongoz-dispatcher`, and install mongoz-dispatcher "
            "again.",
        )


def how_to_install(extra: str) -> str:
    """The remedy for a missing extra. The dispatcher is in no package registry, so the remedy names a checkout."""
    return f"pip install '.[{extra}]' (in a checkout of the repository)"
