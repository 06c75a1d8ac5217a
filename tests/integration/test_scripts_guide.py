"""The files in docs/how-to/scripts.md print what the page shows. Calls of the ODM work in a forked child."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dispatcher.embedded.server import EmbeddedMongo
from tests.integration.test_docs import blocks, localized
from tests.support import PATIENCE, ROOT

PAGE = "docs/how-to/scripts.md"

# The child is forked while the loop of its parent runs, with an open connection.
FORKED = """
import asyncio, os, sys
import mongoz
from shop import User

def in_child(read):
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        assert os.waitpid(pid, 0)[1] == 0
        return
    print(read(), flush=True)
    os._exit(0)

async def main():
    await User.objects.create(name="Ada")
    in_child(lambda: [user.name for user in mongoz.run_sync(User.objects)])
    in_child(lambda: mongoz.run_sync(User.objects.create(name="Bea")).name)
    print(sorted([user.name for user in await User.objects]))

asyncio.run(main())
"""


@pytest.fixture
def folder(tmp_path: Path, mongo: EmbeddedMongo, database: str) -> Path:
    """The folder with the files of the page, which use the server and the database of this test."""
    for block in blocks(PAGE):
        if block.title.endswith(".py"):
            (tmp_path / block.title).write_text(localized(block.text, mongo, database))
    return tmp_path


def run(folder: Path, file: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, file],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


@pytest.mark.parametrize("file", ["script.py", "workers.py"])
def test_the_files_of_the_page_print_what_the_page_prints(file: str, folder: Path):
    expected = next(block.text for block in blocks(PAGE) if block.title == f"output of {file}")
    assert run(folder, file) == expected


def test_a_child_of_a_running_loop_has_a_connection_of_its_own(folder: Path, driver: str):
    models = folder / "shop.py"
    models.write_text(models.read_text().replace("mongoz.Registry(", f"mongoz.Registry(driver={driver!r}, url="))
    (folder / "forked.py").write_text(FORKED)
    assert run(folder, "forked.py").splitlines() == ["['Ada']", "Bea", "['Ada', 'Bea']"]
