"""Facts about the documentation that need no server: its length, and the files that it names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
FOLDERS = "benchmarks|deploy|dispatcher|docs|examples|mongoz|tests|tools"


def test_the_guide_to_the_dispatcher_tells_tasks_in_few_words():
    assert len((ROOT / "docs/guide/dispatcher.md").read_text().split()) <= 1_200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_exists(page: Path):
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []
