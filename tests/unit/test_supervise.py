"""Several processes on one machine: their number, restarts, and merged metrics."""

import asyncio
import io
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dispatcher.core.stats import Gauges, Stats
from dispatcher.exceptions import ExitCode, TooManyProcesses
from dispatcher.group import processes as counts
from dispatcher.group.processes import cpu_limit, partitions_for, process_count, usable_cores
from dispatcher.operate.metrics import Metrics, Snapshot
from dispatcher.supervise.child import _LAST_LINES, Backoff, SupervisedProcess, _follow
from dispatcher.supervise.front import merged
from dispatcher.supervise.lifeline import Role
from dispatcher.supervise.supervisor import Supervisor, is_restarted
from tests.support import PATIENCE, eventually


@pytest.mark.parametrize(("available", "processes"), [(1, 1), (2, 2), (3, 2), (64, 2)])
def test_auto_is_one_process_for_each_core_and_at_most_two_on_change_streams(monkeypatch, available, processes):
    monkeypatch.setattr(counts, "usable_cores", lambda: available)
    assert process_count("auto") == processes
    assert process_count("auto", streams=False) == available
    assert process_count("7") == 7


@pytest.mark.parametrize(("limit", "usable"), [(float("inf"), 4), (8.0, 4), (3.5, 3), (0.5, 1)])
def test_the_usable_cores_are_those_of_the_process_within_its_limit(monkeypatch, limit, usable):
    monkeypatch.setattr(counts.os, "sched_getaffinity", lambda _pid: {0, 2, 5, 7}, raising=False)
    monkeypatch.setattr(counts, "cpu_limit", lambda: limit)
    assert usable_cores() == usable


@pytest.mark.parametrize(
    ("limits", "cores"),
    [
        ({}, float("inf")),
        ({"": "max 100000"}, float("inf")),
        ({"": "150000 100000"}, 1.5),
        ({"a/b": "max 100000", "a": "200000 100000"}, 2),
        ({"a/b": "50000 100000", "a": "200000 100000"}, 0.5),
        ({"other": "50000 100000"}, float("inf")),
        ({"a": "nonsense"}, float("inf")),
    ],
)
def test_the_lowest_limit_of_a_control_group_and_its_parents_counts(tmp_path: Path, limits, cores):
    for group, limit in limits.items():
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / group / "cpu.max").write_text(f"{limit}\n")
    own = tmp_path / "own"
    own.write_text("5:cpuset:/x\n0::/a/b\n")
    assert cpu_limit(tmp_path, own) == cores
    assert cpu_limit(tmp_path, tmp_path / "missing") == float("inf")


def test_a_new_group_gets_a_partition_for_each_process_up_to_four():
    assert [partitions_for(number, "shop") for number in (1, 2, 4)] == [1, 2, 4]
    with pytest.raises(TooManyProcesses, match="--processes is 5, and the new group 'shop'") as refused:
        partitions_for(5, "shop")
    assert "--partitions" in refused.value.remedy
    assert refused.value.exit_code == ExitCode.USAGE


def test_pauses_before_a_restart_double_up_to_a_limit_and_begin_anew_after_steady_work():
    backoff = Backoff()
    assert [backoff.pause_after(0.1) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert [backoff.pause_after(59.9), backoff.pause_after(60.0), backoff.pause_after(0.1)] == [30, 1, 2]


@pytest.mark.parametrize("code", [ExitCode.OK, ExitCode.CRASHED, ExitCode.FORCED, 1, 3, 137, 139])
def test_a_process_that_crashed_or_was_killed_is_started_again(code):
    assert is_restarted(code, joined=True)


@pytest.mark.parametrize("code", [ExitCode.CANNOT_CONNECT, ExitCode.TOO_MANY_FILES])
def test_a_temporary_error_ends_all_processes_only_during_the_start(code):
    assert is_restarted(code, joined=True)
    assert not is_restarted(code, joined=False)


@pytest.mark.parametrize(
    "code",
    [
        ExitCode.USAGE,
        ExitCode.APPLICATION,
        ExitCode.NOTHING_TO_DELIVER,
        ExitCode.NOT_A_REPLICA_SET,
        ExitCode.ACCESS_DENIED,
        ExitCode.SERVER,
        ExitCode.POSITION,
        ExitCode.HISTORY_LOST,
        ExitCode.GROUP_TAKEN,
        ExitCode.CANNOT_LISTEN,
        ExitCode.NOT_INSTALLED,
    ],
)
@pytest.mark.parametrize("joined", [True, False])
def test_after_a_permanent_error_no_process_is_started_again(code, joined):
    assert not is_restarted(code, joined=joined)


@pytest.mark.parametrize("code", [1, 3, ExitCode.CRASHED, 137])
def test_a_first_process_that_can_not_start_is_not_started_again(code):
    assert not is_restarted(code, joined=False)


def text_of(**counts: int) -> str:
    """The metrics of a process with these counters. It has called one receiver once."""
    stats = Stats(**counts)
    stats.figures_of("shop.mail", "post_save").duration.observe(0.02)
    gauges = Gauges(True, 3, 7, 900, 1.5, 12.0, 990.0, 40.0)
    return Metrics(lambda: Snapshot("shop", "1.2", 50.0, 1_000.0, stats, {0: gauges})).text().decode()


def samples_of(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_merged_metrics_have_all_samples_of_each_process_with_its_name():
    texts = {"1": text_of(read=5), "2": text_of(read=7)}
    found = samples_of(merged(texts, 9).decode())
    expected = {
        (name, tuple(sorted((*labels, ("process", process))))): value
        for process, text in texts.items()
        for (name, labels), value in samples_of(text).items()
    }
    dropped = "mongoz_dispatcher_log_lines_dropped_total"
    assert found == {**expected, (dropped, (("group", "shop"), ("process", "supervisor"))): 9}
    read = "mongoz_dispatcher_changes_read_total"
    assert found[read, (("group", "shop"), ("process", "1"))] == 5
    assert found[read, (("group", "shop"), ("process", "2"))] == 7


def test_merged_metrics_name_each_family_once_with_its_kind_and_help():
    one = text_of(read=5).splitlines()
    both = merged({"1": "\n".join(one) + "\n", "2": "\n".join(one) + "\n"}).decode().splitlines()
    assert [line for line in both if line.startswith("#")] == [line for line in one if line.startswith("#")]


def test_the_role_of_a_process_is_not_inherited(monkeypatch):
    role = Role("2", "/tmp/x/2", "http://127.0.0.1:8787", terminal=True)
    for name, value in role.environment().items():
        monkeypatch.setenv(name, value)
    assert Role.of_this_process() == role
    assert Role.of_this_process() is None


LINES = """
import os, sys
for _ in range(200):
    for piece in (sys.argv[1] * 5_000, sys.argv[1] * 5_000 + "\\n"):
        os.write(2, piece.encode())
os.write(2, b"the last line has no end")
os._exit(int(sys.argv[1]))
"""


async def test_lines_of_several_processes_never_mix(capfd):
    stop, codes = asyncio.Event(), []

    def end(code: int) -> bool:
        codes.append(code)
        return False

    processes = [
        SupervisedProcess(
            Role(name, "", "", terminal=False),
            [sys.executable, "-c", LINES, name],
            patience=1.0,
            on_join=lambda _partitions: None,
            on_end=end,
        )
        for name in ("1", "2")
    ]
    await asyncio.gather(*(process.keep(stop) for process in processes))
    sys.stderr.flush()
    lines = Counter(capfd.readouterr().err.splitlines())
    assert lines == {"1" * 10_000: 200, "2" * 10_000: 200, "the last line has no end": 2}
    assert sorted(codes) == [1, 2]
    assert [process.code for process in processes] == [1, 2]


async def test_the_wait_for_last_lines_has_one_limit_for_both_streams(monkeypatch):
    """A process that the ended process has started may keep both streams open.

    Each wait shortens the time that the supervisor has for its own end.
    """
    waited = 0.0

    def join(_thread: threading.Thread, seconds: float) -> None:
        nonlocal waited
        waited += seconds

    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    child = SimpleNamespace(stdout=io.BytesIO(), stderr=io.BytesIO(), wait=lambda: 3)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "join", join)
        patched.setattr("dispatcher.supervise.child.monotonic", lambda: waited)
        _follow(child, ended)
    assert (waited, await ended) == (_LAST_LINES, 3)


async def test_a_process_tells_the_number_of_partitions_when_it_has_joined():
    joined: list[int] = []
    process = SupervisedProcess(
        Role("1", "", "", terminal=False),
        [sys.executable, "-c", "import os; os.write(0, b'256'); os.read(0, 1)"],
        patience=1.0,
        on_join=lambda partitions: (joined.append(partitions), stop.set()),
        on_end=lambda _code: False,
    )
    stop = asyncio.Event()
    await process.keep(stop)
    assert (joined, process.code) == ([256], ExitCode.OK)


async def test_a_process_that_does_not_stop_when_it_is_told_to_stop_is_killed(capfd):
    deaf = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); sys.stdin.read(1); time.sleep(600)"
    stop = asyncio.Event()
    process = SupervisedProcess(
        Role("1", "", "", terminal=False),
        [sys.executable, "-c", deaf],
        patience=0.1,
        on_join=lambda _partitions: None,
        on_end=lambda _code: True,
    )
    keeping = asyncio.create_task(process.keep(stop))
    await asyncio.sleep(0)
    stop.set()
    await keeping
    assert process.code == 128 + 9


MEMBER = """
import json, os, sys, time
name = json.loads(os.environ["_DISPATCHER_ROLE"])["name"]
if not os.path.exists("lives-" + name):
    lives = 0
else:
    lives = int(open("lives-" + name).read())
open("lives-" + name, "w").write(str(lives + 1))
"""


async def supervised(
    monkeypatch,
    tmp_path: Path,
    script: str,
    stop_at: int | None = None,
    stop_when: Callable[[], object] = lambda: True,
) -> tuple[int, list[int]]:
    """Run two processes until they end. Returns the exit code, and how often each process was started.

    Args:
        stop_at: stop when this many processes are ready; None to wait for their end.
        stop_when: a further condition of the stop.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", MEMBER + script])
    monkeypatch.setattr("dispatcher.supervise.child._FIRST_PAUSE", 0.01)
    roles = [Role(name, "", "", terminal=False) for name in ("1", "2")]
    supervisor, stop = Supervisor(roles, patience=60.0), asyncio.Event()
    running = asyncio.create_task(supervisor.run(stop))
    if stop_at:
        await eventually(lambda: len(list(tmp_path.glob("ready-*"))) == stop_at and stop_when())
        stop.set()
    await asyncio.wait_for(running, PATIENCE)
    lives = [tmp_path / f"lives-{role.name}" for role in roles]
    return supervisor.code, [int(file.read_text()) if file.exists() else 0 for file in lives]


async def test_a_permanent_error_ends_all_processes_with_its_code(monkeypatch, tmp_path):
    script = "os.write(0, b'2')\nif name == '2': sys.exit(17)\nassert os.read(0, 1)"
    assert await supervised(monkeypatch, tmp_path, script) == (ExitCode.HISTORY_LOST, [1, 1])


async def test_a_process_that_crashes_is_started_again(monkeypatch, tmp_path):
    script = """
os.write(0, b'2')
if name == '2' and lives < 3:
    os.kill(os.getpid(), 9) if lives else sys.exit(70)
open('ready-' + name, 'w')
assert os.read(0, 1)
"""
    assert await supervised(monkeypatch, tmp_path, script, stop_at=2) == (ExitCode.OK, [1, 4])


async def test_the_other_processes_never_start_if_the_first_process_can_not_start(monkeypatch, tmp_path):
    assert await supervised(monkeypatch, tmp_path, "sys.exit(12)") == (ExitCode.CANNOT_CONNECT, [1, 0])


async def test_the_exit_code_is_that_of_a_process_that_fails_while_it_stops(monkeypatch, tmp_path):
    script = "os.write(0, b'2')\nopen('ready-' + name, 'w')\nassert os.read(0, 1)\nsys.exit(int(name) - 1)"
    assert await supervised(monkeypatch, tmp_path, script, stop_at=2) == (1, [1, 1])


async def test_a_crash_before_the_stop_does_not_count_as_a_failure_to_stop(monkeypatch, tmp_path):
    pauses: list[float] = []

    def pause(_backoff: Backoff, seconds: float) -> float:
        pauses.append(seconds)
        return 10 * PATIENCE

    monkeypatch.setattr(Backoff, "pause_after", pause)
    script = "os.write(0, b'2')\nif name == '2': sys.exit(70)\nopen('ready-1', 'w')\nassert os.read(0, 1)"
    ended = await supervised(monkeypatch, tmp_path, script, stop_at=1, stop_when=lambda: pauses)
    assert ended == (ExitCode.OK, [1, 1])


DIES = """
import os, sys, time
from dispatcher.supervise.lifeline import Lifeline
Lifeline(sys.argv[1], 60.0)
os.write(1, b".")
time.sleep(600)  # the application is being imported
"""


def test_a_process_without_a_supervisor_leaves_no_directory_even_if_it_is_still_starting(tmp_path):
    directory = tmp_path / "sockets"
    directory.mkdir()
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", DIES, str(directory / "1")], stdin=theirs.fileno(), stdout=subprocess.PIPE
        )
    with ours, process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"."
        ours.close()
        assert process.wait(PATIENCE) == -signal.SIGTERM
    assert not directory.exists()


IGNORES = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, "-m", "dispatcher", *sys.argv[1:]])
"""


def test_exit_codes_are_right_if_the_parent_ignores_the_end_of_children():
    ended = subprocess.run(
        [sys.executable, "-c", IGNORES, "run", "no_such_module:registry", "--processes", "2", "--http", "off"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == ExitCode.APPLICATION, ended.stderr


async def test_the_log_mentions_spare_processes_once(monkeypatch, tmp_path, capsys):
    script = "os.write(0, b'1')\nopen('ready-' + name, 'w')\nassert os.read(0, 1)"
    assert await supervised(monkeypatch, tmp_path, script, stop_at=2) == (ExitCode.OK, [1, 1])
    logged = capsys.readouterr().out
    assert logged.count("processes.spare") == 1
    assert "--partitions 2" in logged
