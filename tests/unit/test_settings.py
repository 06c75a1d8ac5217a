"""The settings of the ODM: defaults, sources, and the time of loading."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mongoz
from mongoz.exceptions import OperatorInvalid

LOOKUPS = [
    "exact", "neq", "in", "not_in", "contains", "icontains", "startswith", "istartswith", "endswith", "iendswith",
    "pattern", "gt", "gte", "lt", "lte", "date", "where", "not", "exists", "asc", "desc",
]  # fmt: skip

APP = """
print("loaded")
import mongoz

class Settings(mongoz.MongozSettings):
    lookup_prefix: str = "___"
    url: str = "mongodb://localhost"

    @property
    def shop(self) -> str:
        return self.url + "/shop"

NotSettings = 5
"""


def test_settings_have_defaults_and_list_the_lookups() -> None:
    settings = mongoz.MongozSettings()
    assert set(settings.parsed_ids) == {"id", "_id", "pk"}
    assert settings.lookup_prefix == "__"
    assert settings.operators == list(settings.filter_operators)
    assert sorted(settings.operators) == sorted(LOOKUPS)
    assert settings.stringified_operators.split(", ") == settings.operators
    assert (mongoz.settings.parsed_ids, mongoz.settings.operators) == (settings.parsed_ids, settings.operators)
    assert {"exact": "eq", "in": "in_", "not": "not_", "gt": "gt"}.items() <= dict(
        settings.filter_operators
    ).items()


@pytest.mark.parametrize("name", LOOKUPS)
def test_every_lookup_has_an_operator(name: str) -> None:
    operator = mongoz.settings.get_operator(name)
    assert operator == getattr(mongoz.Q, mongoz.settings.filter_operators[name])
    assert callable(operator)


def test_an_unknown_lookup_is_refused() -> None:
    with pytest.raises(OperatorInvalid, match=r"no lookup 'exacd'. Did you mean 'exact'\? Valid are: exact, neq"):
        mongoz.settings.get_operator("exacd")


def test_two_settings_objects_share_no_table_of_operators() -> None:
    assert mongoz.MongozSettings().filter_operators is not mongoz.MongozSettings().filter_operators


def test_settings_can_be_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(mongoz.settings, "lookup_prefix", "___")
        assert mongoz.settings.lookup_prefix == "___"
    assert mongoz.settings.lookup_prefix == "__"
    with pytest.raises(AttributeError):
        _ = mongoz.settings.nothing_of_this_name


def run(code: str, folder: Path, module: str | None) -> subprocess.CompletedProcess[str]:
    (folder / "shop_settings.py").write_text(APP)
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{Path(mongoz.__file__).parent.parent}"}
    environment.pop("MONGOZ_SETTINGS_MODULE", None)
    if module is not None:
        environment["MONGOZ_SETTINGS_MODULE"] = module
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,  # the caller reads the exit code
    )


USE = """
import mongoz
from mongoz.conf import settings
import inspect
inspect.isawaitable(settings), hasattr(settings, "__wrapped__")
print("imported")
print(settings.lookup_prefix, type(settings.parsed_ids).__name__)
print(getattr(settings, "shop", "no shop"))
class User(mongoz.Document):
    name: str = mongoz.String()
User.objects.filter(name___exact="Ada") if settings.lookup_prefix == "___" else None
"""


def test_the_environment_names_a_subclass_that_is_loaded_on_first_use(tmp_path: Path) -> None:
    done = run(USE, tmp_path, "shop_settings.Settings")
    assert done.stdout.splitlines() == ["imported", "loaded", "___ tuple", "mongodb://localhost/shop"], done.stderr


@pytest.mark.parametrize("module", [None, ""])
def test_without_the_variable_the_defaults_apply(tmp_path: Path, module: str | None) -> None:
    done = run(USE, tmp_path, module)
    assert done.stdout.splitlines() == ["imported", "__ tuple", "no shop"], done.stderr


QUERY = """
import sys
import mongoz
class User(mongoz.Document):
    name: str = mongoz.String()
    class Meta:
        registry = mongoz.Registry("mongodb://localhost")
        database = "shop"
User.objects.filter(name__startswith="A").sort("name")
print("pydantic_settings" in sys.modules)
print(isinstance(mongoz.MongozSettings(), mongoz.MongozSettings), "pydantic_settings" in sys.modules)
"""


def test_queries_with_the_default_settings_need_no_pydantic_settings(tmp_path: Path) -> None:
    done = run(QUERY, tmp_path, None)
    assert done.stdout.splitlines() == ["False", "True True"], done.stderr


@pytest.mark.parametrize(
    "module",
    ["nowhere.Settings", "shop_settings.Missing", "shop_settings.NotSettings", "Settings", "shop_settings"],
)
def test_a_wrong_name_of_a_settings_class_is_an_error_on_first_use(tmp_path: Path, module: str) -> None:
    done = run(USE, tmp_path, module)
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == "imported"
    assert f"ImproperlyConfigured: MONGOZ_SETTINGS_MODULE={module!r}" in done.stderr


def test_documented_import_paths_lead_to_the_same_object() -> None:
    import mongoz.conf.settings as by_path
    from mongoz.conf.settings import settings as from_module

    objects: list[Any] = [by_path, from_module, mongoz.conf.settings]
    assert all(each is mongoz.settings for each in objects)
