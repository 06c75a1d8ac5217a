"""Unwritable logs and closed descriptors do not affect deliveries."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from dispatcher.exceptions import ExitCode
from tests.acceptance.test_run import RECEIVER, write_app
from tests.support import ROOT, eventually_sync, free_port

# Each delivery writes much to stderr, in several ways, and a record to disk.
RECEIVERS = """
import asyncio, logging, os, sys, warnings
@post_save(Thing, retry=1)
async def noisy(sender, instance, **kwargs):
    with open("delivered", "a") as file:
        file.write(instance.name + chr(10))
    if os.environ.get("CLOSES"):
        sys.stderr.close()
    logging.getLogger("shop").error("a library says %s", instance.name)
    print("to stderr", file=sys.stderr)
    if os.environ.get("PRINTS"):
        print("p" * 5000)
    asyncio.get_running_loop().call_exception_handler({"message": "somebody's task failed"})
    raise ValueError("no luck " * int(os.environ.get("WORDS", "3000")))
"""
COUNT = 20


class Running:
    """A dispatcher with given descriptors.

    Attributes:
        port: its HTTP port.
    """

    def __init__(self, app: str, cwd: Path, port: int, *arguments: str, shell: str = "", **streams: Any) -> None:
        self.port = port
        self._cwd = cwd
        command = [sys.executable, "-m", "dispatcher", "run", app, "--http", f"127.0.0.1:{port}", *arguments]
        if shell:
            command = ["/bin/sh", "-c", f'exec "$@" {shell}', "sh", *command]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **streams.pop("env", {})}
        self.process = subprocess.Popen(command, cwd=cwd, env=environment, **streams)
        self._is_told = False

    def terminate(self, times: int = 1) -> None:
        for _ in range(0 if self._is_told else times):
            self.process.send_signal(signal.SIGTERM)
        self._is_told = True

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return answer.read().decode()

    def is_ready(self) -> bool:
        assert self.process.poll() is None
        with suppress(OSError):
            return bool(self.get("/readyz"))
        return False

    def delivered(self) -> int:
        assert self.process.poll() is None
        path = self._cwd / "delivered"
        return len(path.read_text().split()) if path.exists() else 0

    def dropped(self) -> float:
        (line,) = [one for one in self.get("/metrics").splitlines() if "log_lines_dropped_total{" in one]
        return float(line.split()[-1])


@pytest.fixture
def running(tmp_path, mongo, database, foreign):
    app = write_app(tmp_path, mongo.url, receivers=RECEIVERS, database=database)

    @contextmanager
    def run(*codes: int, **options: Any) -> Iterator[Running]:
        codes = codes or (ExitCode.OK,)
        arguments = ("--state-database", f"{database}_state", "--log-format", "json")
        started = Running(app, tmp_path, free_port(), *arguments, **{"stdin": subprocess.DEVNULL, **options})
        try:
            eventually_sync(started.is_ready, within=60)
            foreign["things"].insert_many([{"name": f"n{n}"} for n in range(COUNT)])
            eventually_sync(lambda: started.delivered() == COUNT, within=60)
            yield started
            started.terminate()
            assert started.process.wait(60) in codes
        finally:
            started.process.kill()
            started.process.wait()

    return run


@contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """The two ends of a full pipe."""
    theirs, ours = os.pipe()
    os.set_blocking(ours, False)
    with suppress(BlockingIOError):
        while True:
            os.write(ours, b"." * 4096)
    os.set_blocking(ours, True)
    try:
        yield theirs, ours
    finally:
        os.close(theirs)
        os.close(ours)


def read_until(descriptor: int, enough: bytes, *, within: float = 60) -> bytes:
    os.set_blocking(descriptor, False)
    read = b""
    deadline = time.monotonic() + within
    while enough not in read:
        assert time.monotonic() < deadline, read[-2_000:]
        with suppress(BlockingIOError):
            read += os.read(descriptor, 1_000_000)
        time.sleep(0.01)
    return read


def test_a_full_pipe_delays_neither_deliveries_nor_the_end(running):
    with full_pipe() as (_, ours), running(stderr=ours, stdout=subprocess.DEVNULL) as started:
        eventually_sync(lambda: started.dropped() > 0, within=60)
    # SIGTERM ended the dispatcher although the pipe was not read.


@pytest.mark.slow
def test_dropped_lines_are_reported_one_time_when_the_pipe_is_read(running):
    with full_pipe() as (theirs, ours), running(stderr=ours, stdout=subprocess.DEVNULL) as started:
        eventually_sync(lambda: started.dropped() > 0, within=60)
        read = read_until(theirs, b"log lines were dropped").decode()
        (line,) = [one for one in read.lstrip(".").splitlines() if "log lines were dropped" in one]
        assert '"action": "log.dropped"' in line
        assert '"level": "error"' in line
        started.terminate()
        assert "log lines were dropped" not in read_until(theirs, b"dispatcher.stopped").decode()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["full disk", "reader gone", "closed by a receiver"])
def test_an_unwritable_log_does_not_end_the_dispatcher(what, running, tmp_path):
    if what == "full disk":
        with running(shell="2>/dev/full", stdout=subprocess.DEVNULL) as started:
            eventually_sync(lambda: started.dropped() > 0, within=60)
        return
    if what == "reader gone":
        theirs, ours = os.pipe()
        os.close(theirs)
        with running(stderr=ours, stdout=subprocess.DEVNULL) as started:
            os.close(ours)
            eventually_sync(lambda: started.dropped() > 0, within=60)
        return
    with (
        (tmp_path / "log").open("wb") as log,
        running(stderr=log, stdout=subprocess.DEVNULL, env={"CLOSES": "1"}),
    ):
        pass
    said = (tmp_path / "log").read_text()
    assert "dispatcher.stopped" in said.splitlines()[-1]
    assert said.count('"action": "delivery.dead_lettered"') == COUNT


@pytest.mark.slow
def test_a_second_signal_ends_a_dispatcher_even_with_a_full_pipe(running):
    codes = (ExitCode.FORCED, ExitCode.OK)
    with full_pipe() as (_, ours), running(*codes, stderr=ours, stdout=subprocess.DEVNULL) as started:
        started.terminate(times=2)


@pytest.mark.slow
def test_output_of_receivers_to_a_full_pipe_delays_no_delivery(running):
    with (
        full_pipe() as (_, ours),
        running(stdout=ours, stderr=subprocess.DEVNULL, env={"PRINTS": "1"}) as started,
    ):
        eventually_sync(lambda: started.dropped() > 0, within=60)


def test_log_records_of_libraries_become_lines(running, tmp_path):
    with (tmp_path / "log").open("wb") as log, running(stderr=log, stdout=subprocess.DEVNULL, env={"WORDS": "1"}):
        pass
    said = (tmp_path / "log").read_text()
    assert said.count('"event": "a library says n') == COUNT
    assert said.count('"logger": "shop"') == COUNT
    assert said.count("somebody's task failed") == COUNT
    assert said.splitlines().count("to stderr") == COUNT


@pytest.mark.slow
def test_megabytes_in_a_value_are_cut(running, tmp_path):
    long = {"WORDS": "500000"}
    with (tmp_path / "log").open("wb") as log, running(stderr=log, stdout=subprocess.DEVNULL, env=long):
        pass
    assert (tmp_path / "log").stat().st_size < COUNT * 250_000


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_dispatcher_with_closed_descriptors_delivers(closed, running):
    with running(shell=closed, stdin=None, stdout=None if ">&-" in closed else subprocess.DEVNULL):
        pass


@pytest.mark.slow
def test_the_children_of_a_command_have_standard_descriptors(tmp_path):
    ended = subprocess.run(
        [
            "/bin/sh",
            "-c",
            'exec "$@" <&- >&- 2>&-',
            "sh",
            sys.executable,
            "-m",
            "dispatcher",
            "demo",
            "--seconds",
            "1",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=110,
        check=False,
    )
    assert ended.returncode == ExitCode.OK


def test_the_last_error_is_written(tmp_path, mongo, database):
    app = write_app(tmp_path, mongo.url, receivers="raise RuntimeError('last words')", database=database)
    ended = subprocess.run(
        [sys.executable, "-m", "dispatcher", "run", app],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == ExitCode.APPLICATION
    assert "last words" in ended.stderr
    assert "remedy:" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "buffering"),
    [
        *(
            (command, "")
            for command in ("--version", "--help", "check APP", "receivers APP", "receivers APP --json")
        ),
        *((command, "") for command in ("status", "status --json", "dead-letters list --json", "position show")),
        *((command, "1") for command in ("--help", "status", "status --json")),
    ],
)
def test_unwritable_results_are_an_error_that_names_stdout(command, buffering, tmp_path, mongo, database, foreign):
    foreign.client[f"{database}_state"]["positions"].insert_one({"_id": "g", "group": "g", "partitions": 1})
    app = write_app(tmp_path, mongo.url, receivers=RECEIVER, database=database)
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "dispatcher", *command.replace("APP", app).split()],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "PYTHONUNBUFFERED": buffering,
                "DISPATCHER_URL": mongo.url,
                "DISPATCHER_STATE_DATABASE": f"{database}_state",
            },
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == ExitCode.CANNOT_WRITE, ended.stderr
    lines = ended.stderr.splitlines()
    assert [line for line in lines if line.startswith("error:")] == [
        "error: stdout could not be written: No space left on device."
    ]
    assert "remedy: Make room on the disk" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr


def test_an_error_has_its_exit_code_although_nothing_can_be_written(tmp_path):
    ended = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m dispatcher receivers nowhere:registry >/dev/full 2>&1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
    )
    assert ended.returncode == ExitCode.APPLICATION


def test_a_pipe_made_non_blocking_by_another_process_gets_everything(tmp_path):
    theirs, ours = os.pipe()
    os.set_blocking(ours, False)
    with suppress(BlockingIOError):
        while True:
            os.write(ours, b"." * 4096)
    command = [sys.executable, "-m", "dispatcher", "run", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=ours, stderr=ours) as running:
        os.close(ours)
        time.sleep(1)  # so the command meets the full pipe
        with os.fdopen(theirs, "rb") as pipe:
            said = pipe.read().lstrip(b".").decode()
    assert running.returncode == ExitCode.OK
    assert "--log-level" in said
    assert "Error" not in said
