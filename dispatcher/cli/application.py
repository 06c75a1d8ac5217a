"""Loads APP: the registry to serve, and the modules that connect receivers to its documents."""

import importlib
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

from dispatcher.core.error_text import text_of
from dispatcher.exceptions import ApplicationError

if TYPE_CHECKING:
    from mongoz import Registry

# The frames of these modules do not show which line of the application is wrong.
_LIBRARIES: Final = ("mongoz", "bson", "pydantic")


def load_registry(app: str, modules: Iterable[str] = ()) -> "Registry":
    """Import an application.

    Args:
        app: `"package.module:registry"`.
        modules: further modules to import, with receivers that APP does not import.

    Raises:
        ApplicationError: APP or a module can't be imported, or APP is not a registry.
    """
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    module_name, separator, attribute = app.partition(":")
    if not (separator and module_name and attribute):
        raise ApplicationError(
            f"APP is {app!r}, but must name a module and the registry in it.",
            remedy="Write it like 'shop.models:registry'.",
        )
    module = _import(module_name, "APP")
    registry = _attribute(module, attribute, app)
    for name in modules:
        _import(name, "--import")
    return registry


def load_registries(apps: Iterable[str], modules: Iterable[str] = ()) -> "list[Registry]":
    """Import several applications, see `load_registry`. The modules are imported after all applications."""
    registries = [load_registry(app) for app in apps]
    for name in modules:
        _import(name, "--import")
    return registries


def _import(name: str, origin: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise ApplicationError(
                f"{origin} names the module {name!r}, but there is no module {missing!r} on the path.",
                remedy=f"Start in the directory that holds the module, not in {Path.cwd()}, or set PYTHONPATH.",
            ) from error
        raise _broken(name, origin, error) from error
    except KeyboardInterrupt:  # Ctrl-C
        raise
    except BaseException as error:
        raise _broken(name, origin, error) from error


def _broken(name: str, origin: str, error: BaseException) -> ApplicationError:
    # The innermost frame of the application's own code, without the import machinery and libraries.
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_library(f.filename)]
    frame = frames[-1] if frames else None
    place = f" ({frame.filename}:{frame.lineno})" if frame else ""
    return ApplicationError(
        f"{origin} names the module {name!r}, which fails when it is imported{place}: {text_of(error)}",
        remedy=f"Fix it. `python -c 'import {name}'` shows the whole traceback.",
    )


def _is_library(filename: str) -> bool:
    files = [sys.modules[name].__file__ for name in _LIBRARIES if name in sys.modules]
    ours = tuple(str(Path(file).parent) + os.sep for file in files if file)
    return filename.startswith(ours) or "importlib" in filename or __file__ == filename


def _attribute(module: ModuleType, attribute: str, app: str) -> "Registry":
    from mongoz import Registry
    from mongoz.synonyms import nearest

    found: object = module
    for step in attribute.split("."):
        if not hasattr(found, step):
            registries = [name for name, value in vars(module).items() if isinstance(value, Registry)]
            raise ApplicationError(
                f"APP is {app!r}, but {module.__name__} has no {step!r}."
                f"{nearest(step, registries or vars(module))}",
                remedy="Name the mongoz.Registry of the application.",
            )
        found = getattr(found, step)
    if not isinstance(found, Registry):
        raise ApplicationError(
            f"APP is {app!r}, but that is {_kind_of(found)}, not a registry.",
            remedy="Name the mongoz.Registry of the application.",
        )
    return found


def _kind_of(thing: object) -> str:
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    return f"a {type(thing).__name__}"
