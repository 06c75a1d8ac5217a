"""`__all__` is complete and sorted, and documented import paths work.

No package imports a private name of pydantic at run time.
"""

import ast
import importlib
import pickle
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pymongo
import pytest

import dispatcher
import mongoz


def modules(package: ModuleType) -> list[str]:
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return [package.__name__, *(module.name for module in found if not module.name.endswith("__main__"))]


MODULES = [*modules(mongoz), *modules(dispatcher)]


def natural(name: str) -> tuple[int, str]:
    """Ruff's order (RUF022): constants, classes, everything else."""
    bare = name.lstrip("_")
    return (0 if bare.isupper() and len(bare) > 1 else 1 if bare[:1].isupper() else 2, name)


@pytest.mark.parametrize("name", MODULES)
def test_dunder_all_is_sorted_and_its_names_exist(name: str) -> None:
    module = importlib.import_module(name)
    exported = list(getattr(module, "__all__", []))
    assert len(set(exported)) == len(exported)
    assert exported == sorted(exported, key=natural)
    assert [each for each in exported if not hasattr(module, each)] == []


@pytest.mark.parametrize("name", MODULES)
def test_dunder_all_contains_every_public_class_and_function(name: str) -> None:
    module = importlib.import_module(name)
    own = {
        each
        for each, value in vars(module).items()
        if not each.startswith("_")
        and getattr(value, "__module__", None) == name
        and (isinstance(value, type) or callable(value))
        and getattr(value, "__qualname__", each) == each
    }
    assert own <= set(getattr(module, "__all__", own)) | {"settings"}


PUBLIC = ("dispatcher.embedded", "dispatcher.exceptions", "dispatcher.settings", "dispatcher.testing")


@pytest.mark.parametrize("name", modules(dispatcher))
def test_only_packages_and_public_modules_of_the_dispatcher_list_their_names(name: str) -> None:
    module = importlib.import_module(name)
    assert hasattr(module, "__all__") == name.startswith(PUBLIC) or hasattr(module, "__path__")


EXCEPTIONS = (
    "MongozException DocumentNotFound MultipleDocumentsReturned FieldDefinitionError ImproperlyConfigured "
    "InvalidObjectIdError InvalidKeyError SignalError AbstractDocumentError OperatorInvalid TransactionError "
    "WriteConflict"
)

FIELDS = (
    "Array ArrayList Binary Boolean Date DateTime Decimal Double Email Embed ForeignKey Integer NullableObjectId "
    "Object ObjectId String Time UUID"
)

EXPORTS = {
    "mongoz": f"{FIELDS} {EXCEPTIONS} Collection Database Document EmbeddedDocument Expression Index IndexType "
    "Manager MongozSettings Order Q QuerySet QuerySetManager Registry Signal SortExpression U fields "
    "run_sync settings",
    "mongoz.fields": FIELDS,
    "mongoz.core.signals": "pre_save post_save pre_update post_update pre_delete post_delete Signal Broadcaster",
    "mongoz.core.db.fields": FIELDS,
    "mongoz.core.connection.registry": "Registry",
    "mongoz.core.db.querysets.base": "Manager QuerySet",
    "mongoz.core.db.documents.managers": "QuerySetManager",
    "mongoz.exceptions": f"{EXCEPTIONS} IndexError",
    "mongoz.conf": "settings",
    "mongoz.conf.settings": "settings MongozSettings",
    "mongoz.signals": "muted Delivery Retry Signal Broadcaster",
    "mongoz.testing": "Captured Fired capture",
}


@pytest.mark.parametrize(("path", "names"), EXPORTS.items())
def test_documented_import_paths_work(path: str, names: str) -> None:
    module = importlib.import_module(path)
    for name in names.split():
        assert name in module.__all__
        same = getattr(module, name) is getattr(mongoz, name, getattr(module, name))
        assert same, f"{path}.{name} is not the object mongoz.{name}"


def test_the_package_has_its_version() -> None:
    assert mongoz.__version__.count(".") == 2
    assert "__version__" in mongoz.__all__


def test_the_index_error_does_not_shadow_the_builtin() -> None:
    assert mongoz.IndexError is mongoz.exceptions.IndexError
    assert "IndexError" not in mongoz.__all__
    namespace: dict[str, object] = {}
    exec("from mongoz import *", namespace)
    assert "IndexError" not in namespace
    assert namespace["Document"] is mongoz.Document


@pytest.mark.parametrize("name", ["GEO2D", "GEOSPHERE", "HASHED", "TEXT"])
def test_index_types_equal_those_of_the_driver(name: str) -> None:
    assert getattr(mongoz.IndexType, name) == getattr(pymongo, name)


@pytest.mark.parametrize("name", ["ASCENDING", "DESCENDING"])
def test_orders_equal_those_of_the_driver(name: str) -> None:
    assert getattr(mongoz.Order, name) == getattr(pymongo, name)


@pytest.mark.parametrize(
    "name", [name for name in mongoz.exceptions.__all__ if isinstance(getattr(mongoz.exceptions, name), type)]
)
def test_every_exception_is_a_mongoz_exception_with_a_message(name: str) -> None:
    error = getattr(mongoz.exceptions, name)
    assert issubclass(error, mongoz.MongozException)
    if error in {mongoz.RetryAfter, mongoz.BatchError}:  # tests/unit/test_retry_after.py, test_batch_options.py
        return
    assert str(error()) == error.__doc__
    assert str(error("what", detail="why")) == "what why"
    assert error("what").args == ("what",)
    assert error(404, None, ["a"]).args == (404, None, ["a"])  # the arguments stay unchanged, as in any exception
    assert str(error(404, None, ["a"])) == "404 ['a']"
    assert error(detail="why").detail == "why"
    assert str(error(detail="why")) == "why"
    assert error("what").detail == "what"
    copied = pickle.loads(pickle.dumps(error("what", detail="why")))
    assert (type(copied), copied.args, copied.detail) == (error, ("what", "why"), "why")


def run_time_imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for other in node.orelse:
                yield from run_time_imports(ast.Module([other], []))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from run_time_imports(node)


@pytest.mark.parametrize("package", ["mongoz", "dispatcher"])
def test_nothing_private_of_pydantic_is_imported(package: str) -> None:
    folder = Path(importlib.import_module(package).__path__[0])
    sources = list(folder.rglob("*.py"))
    assert len(sources) > 15
    private = [
        (source.name, name)
        for source in sources
        for name in run_time_imports(ast.parse(source.read_text()))
        if name.startswith("pydantic") and any(part.startswith("_") for part in name.split("."))
    ]
    assert private == []


def test_the_search_finds_private_imports() -> None:
    source = (
        "if TYPE_CHECKING:\n import pydantic._a\nelse:\n import pydantic._b\ndef f():\n from pydantic import _c"
    )
    assert list(run_time_imports(ast.parse(source))) == ["pydantic._b", "pydantic._c"]
