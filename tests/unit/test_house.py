"""Rules that no linter checks, about private names, names of classes, and the number of modules in a package."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.core.events import Job

ROOT = Path(__file__).parents[2]
MODULES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text())
    for package in ("mongoz", "dispatcher")
    for path in sorted((ROOT / package).rglob("*.py"))
}

PUBLIC = {"_asdict", "_fields", "_make", "_replace", "_exit", "_getframe", "_current_frames", "_id"}
"""Documented names of the standard library, and of PyMongo's files, that begin with an underscore."""

WITHOUT_A_PUBLIC_CALL = {
    "_add_error_label": "PyMongo: labels of an error that the ODM makes",
    "_attributes_set": "pydantic: the arguments of a field that a copy keeps",
    "_decoder_map": "PyMongo: the decoders of a type registry",
    "_init_kwargs": "PyMongo: the arguments of a client that the application opened",
    "_servers": "PyMongo: connections to close after an election",
    "_topology": "PyMongo: connections to close after an election",
}
"""Private names of other libraries, with the reason."""


def own_names(module: ast.AST) -> set[str]:
    """The names that a module defines: functions, classes, variables, attributes, and names in `setattr` calls."""
    names: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own_object(node.value):
            names.add(node.attr)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "__setattr__":
            names |= {each.value for each in node.args if isinstance(each, ast.Constant)}
    return names


def is_own_object(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in {"self", "cls", "mcs"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in PUBLIC | WITHOUT_A_PUBLIC_CALL.keys()


def private_accesses(name: str, module: ast.AST) -> Iterator[str]:
    own = own_names(module)
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{name}: {node.module}.{each.name}" for each in node.names if is_private(each.name))
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            yield from () if is_own_object(node.value) else (f"{name}: {ast.unparse(node)}",)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("registry._clients", ["m.py: registry._clients"]),
        ("from mongoz.keys import _value", ["m.py: mongoz.keys._value"]),
        ("import a\na._b()", ["m.py: a._b"]),
        ("self._clients", []),
        ("super()._clients", []),
        ("class A:\n  def _f(self, other):\n    return other._f", []),
        ("row._replace(a=1)", []),
        ("a.__dict__", []),
    ],
)
def test_an_access_of_a_private_name_is_found(source: str, found: list[str]) -> None:
    assert list(private_accesses("m.py", ast.parse(source))) == found


def test_private_names_stay_in_their_module() -> None:
    found = {access for name, module in MODULES.items() for access in private_accesses(name, module)}
    assert found == set()


def test_a_class_name_means_one_thing() -> None:
    places: dict[str, set[str]] = defaultdict(set)
    for name, module in MODULES.items():
        for node in ast.walk(module):
            if isinstance(node, ast.ClassDef):
                places[node.name.lstrip("_")].add(name)
    assert {name: sorted(where) for name, where in places.items() if len(where) > 1} == {}


def test_a_package_has_at_most_24_modules() -> None:
    sizes: dict[str, int] = defaultdict(int)
    for name in MODULES:
        sizes[str(Path(name).parent)] += 1
    assert {package: size for package, size in sizes.items() if size > 24} == {}


def written_from_outside(module: ast.AST, attributes: set[str]) -> Iterator[str]:
    """The assignments to attributes with these names, if their object is not `self`."""
    for node in ast.walk(module):
        is_written = (
            isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr in attributes
        )
        if is_written and not is_own_object(node.value):
            yield ast.unparse(node)


def test_only_jobs_and_the_deliverer_change_attributes_of_jobs() -> None:
    attributes = set(Job.__slots__) - {"size", "token", "change", "calls"}  # names that other classes have, too
    found = {name: list(written_from_outside(module, attributes)) for name, module in MODULES.items()}
    del found["dispatcher/core/events.py"]
    assert {name for name, places in found.items() if places} == {"dispatcher/delivery/deliverer.py"}
    assert set(found["dispatcher/delivery/deliverer.py"]) == {"job.passed", "parent.passed"}
