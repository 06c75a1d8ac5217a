"""Facts about the documentation: the length of a guide, the files that pages name, and the public names."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOT_PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *ROOT_PAGES]
FOLDERS = "benchmarks|deploy|dispatcher|docs|examples|mongoz|tests|tools"


def test_the_guide_to_the_dispatcher_is_short():
    assert len((ROOT / "docs/guide/dispatcher.md").read_text().split()) <= 1_200


def test_the_first_screen_of_the_readme_says_what_the_project_is_and_how_to_try_it():
    screen = (ROOT / "README.md").read_text().partition("\n## ")[0]
    assert len(screen.splitlines()) <= 40
    for said in (
        "It is for teams",
        "| It needs |",
        "on PyPI yet",
        "beside the package `mongoz`",
        "sharded clusters",
    ):
        assert said in screen
    assert re.findall(r"!\[.+\]\((\S+)\)", screen) == ["docs/images/demo.svg"]
    (commands,) = re.findall(r"```sh\n(.*?)```", screen, re.DOTALL)
    assert commands.splitlines() == ["make demo", "make test"]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_exists(page: Path):
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", ROOT_PAGES, ids=lambda page: page.name)
def test_every_relative_link_outside_of_docs_leads_to_a_file(page: Path):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_every_page_and_test_that_a_deploy_file_names_exists():
    files = [path for path in (ROOT / "deploy").rglob("*") if path.is_file()] + [ROOT / "docker-compose.yml"]
    named = [path for file in files for path in re.findall(r"\b(?:docs|tests)/[\w./-]+\.\w+", file.read_text())]
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def listed() -> dict[str, list[str]]:
    """The public modules of the reference, each with the names in the first column of its table."""
    page = (ROOT / "docs/reference/public-api.md").read_text()
    found: dict[str, list[str]] = {}
    for section in re.split(r"^#{2,3} ", page, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        if heading.startswith("`"):
            cells = [line.split("|")[1] for line in body.splitlines() if line.startswith("|")]
            found[heading.strip("`")] = re.findall(r"`(\w+)`", " ".join(cells))
    return found


def test_the_reference_of_public_names_lists_the_public_modules():
    documented = re.search(
        r"import\s+paths\s\((.*?)\)", (ROOT / "docs/coming-from/mongoz.md").read_text(), re.DOTALL
    )
    assert documented
    assert set(re.findall(r"`([\w.]+)`", documented[1])) <= listed().keys()
    assert {"mongoz", "mongoz.signals", "mongoz.testing"} <= listed().keys()
    assert {f"dispatcher.{name}" for name in ("testing", "embedded", "settings", "exceptions")} <= listed().keys()


@pytest.mark.parametrize("module", listed())
def test_public_names_are_those_of_the_reference(module: str):
    assert sorted(listed()[module]) == sorted(importlib.import_module(module).__all__)
