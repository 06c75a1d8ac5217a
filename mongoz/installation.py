"""Refuses the import if mongoz-dispatcher and the package `mongoz` are installed in the same directory.

Both packages have files of the same names. In one directory, each package hides or replaces files of the other.
"""

from pathlib import Path
from typing import Final

__all__: list[str] = []

_REMEDY: Final = (
    "Uninstall both with `pip uninstall mongoz mongoz-dispatcher`, and install mongoz-dispatcher again."
)


def _refuse_other_package(directory: Path) -> None:
    """Raise `ImportError` if a package called `mongoz` is installed into a directory.

    The record of that package is named `mongoz-<version>.dist-info`. The name of the record of this package begins
    with `mongoz_dispatcher`.
    """
    for record in directory.glob("mongoz-*.dist-info"):
        raise ImportError(
            f"Two packages are installed as {directory / 'mongoz'}: mongoz-dispatcher, and mongoz "
            f"({record.name}). Each replaces files of the other. {_REMEDY}",
            name="mongoz",
        )


_refuse_other_package(Path(__file__).parent.parent)
