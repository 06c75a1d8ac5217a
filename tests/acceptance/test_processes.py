"""`dispatcher run --processes`: a supervisor and its processes, started, signalled and killed."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.core.identity import Identity
from dispatcher.exceptions import ExitCode
from tests.acceptance.test_http import address_of, get, get_json, metric
from tests.acceptance.test_run import RECEIVER, assert_one_error, run, write_app
from tests.ledger import APP, IMAGES, ForeignClient, Ledger, Writer, disorder
from tests.support import PATIENCE, Daemon, daemon, eventually_sync

TOKEN = "sixteen letters or more"


@pytest.fixture
def ledger(mongo, database, tmp_path):
    return Ledger(tmp_path / "ledger", mongo.url, database)


@pytest.fixture
def environment(ledger) -> dict[str, str]:
    return {**ledger.environment, "DISPATCHER_HTTP": "127.0.0.1:0", "DISPATCHER_HTTP_TOKEN": TOKEN}


@pytest.fixture
def two(environment, foreign, tmp_path) -> Iterator[Daemon]:
    """A supervisor with two processes, each with a partition."""
    foreign.create_collection("accounts", **IMAGES)
    with daemon(APP, "--processes", "2", cwd=tmp_path, **environment) as running:
        wait_ready(running)
        eventually_sync(lambda: held_by(foreign) == set(pids(running).values()), what=running)
        yield running
    for pid in all_pids(running):
        eventually_sync(lambda pid=pid: is_gone(pid), what=f"{pid} ends with its supervisor")


def wait_ready(running: Daemon) -> None:
    eventually_sync(lambda: running.lines("http.listening") or running.process.poll() is not None, what=running)
    assert running.process.poll() is None, running.log
    address = address_of(running)
    eventually_sync(lambda: get(f"{address}/readyz")[0] == 200, what=running)


def pids(running: Daemon) -> dict[str, int]:
    """Names of the processes -> their present process ids."""
    return {line["process"]: line["pid"] for line in running.lines("process.started")}


def all_pids(running: Daemon) -> list[int]:
    return [line["pid"] for line in running.lines("process.started")]


def held_by(foreign) -> set[int]:
    """The ids of the processes that hold partitions; with None if a partition has no holder."""
    positions = foreign.client[f"{foreign.name}_state"]["positions"]
    return {
        one.get("pid") if one.get("owner") else None for one in positions.find({"partition": {"$exists": True}})
    }


def is_gone(pid: int) -> bool:
    """Whether a process has ended. A process that nobody waits for stays a zombie, and has ended too."""
    return Identity("", pid, _boot_of(pid)).is_dead


def _boot_of(pid: int) -> str:
    from dispatcher.core.identity import own_identity

    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        started = "0"
    return own_identity().boot.rpartition("/")[0] + f"/{started}"


@pytest.mark.slow
def test_two_processes_share_a_new_group_and_stop_cleanly(two, ledger, foreign):
    names = [f"a{number}" for number in range(40)]
    foreign["accounts"].insert_many([{"name": name, "n": 1} for name in names])
    eventually_sync(lambda: len(ledger()) >= len(names), what=two)
    assert {entry.name for entry in ledger()} == set(names)
    assert two.terminate() == ExitCode.OK
    assert len(ledger()) == len(names)
    stopped = {line["process"]: line["delivered"] for line in two.lines("dispatcher.stopped")}
    assert sum(stopped.values()) == len(names)
    assert all(stopped[name] > 0 for name in ("1", "2"))
    assert held_by(foreign) == {None}, "every partition is handed over"
    assert "Traceback" not in two.log


@pytest.mark.slow
def test_every_log_line_names_its_process(two):
    lines = [json.loads(line) for line in two.log.splitlines()]
    assert {line["process"] for line in lines} == {"supervisor", "1", "2"}
    assert {line["process"] for line in lines if line["action"] == "dispatcher.started"} == {"1", "2"}
    assert len(two.lines("http.listening")) == 1


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_nothing_is_lost(two, ledger, foreign):
    writer = Writer({ForeignClient(foreign["accounts"]): 1}, seed=3)
    writer.start()
    try:
        for kill, name in enumerate(("1", "2", "1")):
            eventually_sync(lambda kill=kill: len(ledger()) >= 200 * (kill + 1), what=two)
            before = pids(two)
            os.kill(before[name], signal.SIGKILL)
            eventually_sync(lambda name=name, before=before: pids(two)[name] != before[name], what=two)
        writer.join()
        eventually_sync(lambda: {entry.write for entry in ledger()} >= writer.written, what=two)
        eventually_sync(lambda: held_by(foreign) == set(pids(two).values()), what=two)
        assert two.terminate() == ExitCode.OK
    finally:
        writer.stop()
    assert {entry.write for entry in ledger()} == writer.written
    assert disorder(ledger(), writer.orders()) == []
    ended = two.lines("process.ended")
    assert [(line["process"], line["signal"]) for line in ended] == [
        ("1", "SIGKILL"),
        ("2", "SIGKILL"),
        ("1", "SIGKILL"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("together", [False, True], ids=["the supervisor", "all processes"])
def test_ctrl_c_stops_all_processes_cleanly(two, together):
    """A terminal signals the supervisor; systemd can signal every process of a service."""
    for pid in [two.process.pid, *(pids(two).values() if together else ())]:
        os.kill(pid, signal.SIGINT)
    assert two.process.wait(PATIENCE) == ExitCode.OK
    assert {line["process"] for line in two.lines("dispatcher.stopped")} == {"1", "2"}
    sessions = {line["pid"] for line in two.lines("process.started")}
    assert two.process.pid not in sessions


@pytest.mark.slow
def test_ctrl_c_on_the_terminal_does_not_reach_the_processes(two):
    assert all(os.getsid(pid) == pid for pid in pids(two).values())


@pytest.mark.slow
def test_a_second_signal_ends_all_processes_immediately(ledger, environment, foreign, tmp_path):
    foreign.create_collection("accounts", **IMAGES)
    slow = {**environment, "LEDGER_STRAGGLERS": "1", "LEDGER_SLOWNESS": "1000"}
    with daemon(APP, "--processes", "2", "--grace", "600", "--timeout", "600", cwd=tmp_path, **slow) as running:
        wait_ready(running)
        eventually_sync(lambda: held_by(foreign) == set(pids(running).values()), what=running)
        foreign["accounts"].insert_many([{"name": str(number), "n": 1} for number in range(20)])
        address = address_of(running)
        for name in ("1", "2"):
            eventually_sync(lambda name=name: (metric(address, "in_flight", process=name) or 0) > 0, what=running)
        running.process.send_signal(signal.SIGTERM)
        eventually_sync(lambda: len(running.lines("dispatcher.draining")) == 2, what=running)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(PATIENCE) == ExitCode.FORCED
        for pid in pids(running).values():
            eventually_sync(lambda pid=pid: is_gone(pid), what=f"{pid} ends")


@pytest.mark.slow
def test_processes_end_cleanly_when_their_supervisor_is_killed(two, foreign):
    files = [file for pid in pids(two).values() for file in sockets_of(pid)]
    assert len(files) == 2
    assert all(file.exists() for file in files)
    two.kill()
    for pid in pids(two).values():
        eventually_sync(lambda pid=pid: is_gone(pid), what=f"{pid} ends")
    assert held_by(foreign) == {None}, "every partition is handed over"
    assert not any(file.parent.exists() for file in files)


def sockets_of(pid: int) -> list[Path]:
    """The Unix sockets at which a process listens."""
    opened = {str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    listening = [row for row in rows if len(row) > 7 and row[3] == "00010000"]
    return [Path(row[7]) for row in listening if f"socket:[{row[6]}]" in opened]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["no_such_module:registry"], ExitCode.APPLICATION, "no module 'no_such_module'"),
        (["app:registry", "--url", "localhost"], ExitCode.CANNOT_CONNECT, "does not parse"),
        (["app:registry", "--http", "256.0.0.1:1"], ExitCode.CANNOT_LISTEN, "can't listen at 256.0.0.1:1"),
    ],
)
def test_an_error_at_the_start_of_several_processes_appears_once(tmp_path, mongo, arguments, code, says):
    write_app(tmp_path, mongo.url, receivers=RECEIVER)
    result = run("run", *arguments, "--processes", "2", cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert_one_error(result, says)


@pytest.mark.slow
def test_a_group_of_another_application_is_an_error(tmp_path, mongo, database, foreign):
    app = write_app(tmp_path, mongo.url, receivers=RECEIVER, database=database)
    state = ["--state-database", f"{database}_state"]
    assert run("setup", app, *state, cwd=tmp_path).returncode == ExitCode.OK
    (tmp_path / "app.py").rename(tmp_path / "other.py")
    result = run("run", "other:registry", "--processes", "2", *state, cwd=tmp_path)
    assert result.returncode == ExitCode.GROUP_TAKEN, result.stderr
    assert_one_error(result, "belongs to the application 'app:registry'")


@pytest.mark.slow
def test_a_new_group_of_many_processes_needs_a_number_of_partitions(environment, tmp_path):
    result = run("run", APP, "--processes", "5", cwd=tmp_path, **environment)
    assert result.returncode == ExitCode.USAGE
    assert_one_error(result, "would get 5 partitions")
    assert "--partitions 4" in result.stderr


@pytest.mark.parametrize("value", ["0", "many"])
def test_a_wrong_number_of_processes_is_an_error(tmp_path, value):
    app = write_app(tmp_path, "mongodb://localhost", receivers=RECEIVER)
    result = run("run", app, "--processes", value, cwd=tmp_path)
    assert result.returncode == ExitCode.USAGE
    assert "--processes" in result.stderr


@pytest.mark.slow
def test_an_existing_number_of_partitions_stays_and_spare_processes_are_named(environment, foreign, tmp_path):
    foreign.create_collection("accounts", **IMAGES)
    with daemon(APP, cwd=tmp_path, **environment) as running:
        running.wait_started()
        eventually_sync(lambda: running.lines("lease.claimed"))
        assert running.terminate() == ExitCode.OK
    with daemon(APP, "--processes", "2", cwd=tmp_path, **environment) as running:
        wait_ready(running)
        (spare,) = running.lines("processes.spare")
        assert (spare["partitions"], spare["processes"]) == (1, 2)
        assert "--partitions 2" in spare["remedy"]
        readyz = f"{address_of(running)}/readyz"
        eventually_sync(lambda: get_json(readyz)[1]["partitions"] == [0], what=running)
        assert running.terminate() == ExitCode.OK


@pytest.mark.slow
def test_one_port_answers_for_all_processes(two, foreign):
    address = address_of(two)
    eventually_sync(lambda: get_json(f"{address}/livez") == (200, {"alive": True, "reasons": []}), what=two)
    status, ready = eventually_sync(lambda: (found := get_json(f"{address}/readyz"))[0] == 200 and found)
    assert (status, ready["ready"], ready["reasons"]) == (200, True, [])
    assert (ready["partitions"], set(ready["processes"])) == ([0, 1], {"1", "2"})
    foreign["accounts"].insert_many([{"name": f"a{number}", "n": 1} for number in range(40)])
    eventually_sync(lambda: metric(address, "deliveries_total", signal="post_save") == 40)
    each = [metric(address, "deliveries_total", process=name) for name in ("1", "2")]
    assert (sum(each), min(each) > 0) == (40, True)
    assert metric(address, "partitions_held") == 2
    eventually_sync(lambda: metric(address, "members", process="1") == 2)
    shown = get_json(f"{address}/status.json")[1]
    assert {one["pid"] for one in shown["group"]["members"]} == set(pids(two).values())
    assert {one["http"] for one in shown["group"]["members"]} == {address}
    assert get(f"{address}/nothing")[0] == 404
    status, page = get(f"{address}/dashboard/")
    assert (status, b"<html" in page) == (200, True)


def ask(address: str, *arguments: str, sent: str = "") -> str:
    """The answer of curl: its headers and its body. `--json @-` sends a body."""
    done = subprocess.run(
        ["curl", "--silent", "--include", "--max-time", str(PATIENCE), *arguments, address],
        input=sent,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.slow
def test_the_rules_for_http_clients_apply_with_a_supervisor_too(two):
    address = address_of(two)
    letters = f"{address}/dashboard/api/letters"
    pause = ["--json", '{"receiver": null}']
    assert "421" in ask(address, "-H", "Host: evil.example").splitlines()[0]
    assert "frame-ancestors 'none'" in ask(f"{address}/dashboard/")
    assert "401" in ask(letters).splitlines()[0]
    for _ in range(20):  # the answer comes before the whole request is read
        assert "401" in ask(f"{address}/dashboard/api/pause", *pause).splitlines()[0]
    assert "401" in ask(letters, "-H", "Authorization: Bearer nonsense").splitlines()[0]
    (denied,) = eventually_sync(lambda: two.lines("dashboard.denied"))
    assert denied["client"] == "127.0.0.1"
    token = ["-H", f"Authorization: Bearer {TOKEN}"]
    assert "200" in ask(letters, *token).splitlines()[0]
    assert "200" in ask(f"{address}/dashboard/api/pause", *token, *pause).splitlines()[0]
    eventually_sync(lambda: get_json(f"{address}/readyz")[1]["paused"] == ["*"])
    long = json.dumps({"receiver": "x" * 300_000})
    assert "413" in ask(f"{address}/dashboard/api/pause", *token, "--json", "@-", sent=long)
    assert "405" in ask(f"{address}/metrics", "-X", "POST").splitlines()[0]
    head = ask(f"{address}/dashboard/", "--head")
    assert ("200" in head.splitlines()[0], "content-length: 0" in head) == (True, False)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [["--http1.0"], ["-H", "X-Forwarded-For: 10.0.0.1"]])
def test_without_a_token_a_proxy_can_not_read_documents(environment, foreign, tmp_path, sent):
    foreign.create_collection("accounts", **IMAGES)
    open_ = {**environment, "DISPATCHER_HTTP_TOKEN": ""}
    with daemon(APP, "--processes", "2", cwd=tmp_path, **open_) as running:
        wait_ready(running)
        letters = f"{address_of(running)}/dashboard/api/letters"
        assert "200" in ask(letters).splitlines()[0]
        assert "403" in ask(letters, *sent).splitlines()[0]
        forged = ["-H", "X-Dispatcher-Client: 1.1 127.0.0.1"]
        assert "403" in ask(letters, *sent, *forged).splitlines()[0]
        assert running.terminate() == ExitCode.OK


@pytest.mark.slow
def test_a_process_that_is_gone_is_not_ready_and_another_one_answers(two):
    address = address_of(two)
    os.kill(pids(two)["1"], signal.SIGSTOP)
    os.kill(pids(two)["1"], signal.SIGKILL)
    gone = "process 1: it is not running"
    eventually_sync(lambda: gone in get_json(f"{address}/readyz")[1]["reasons"])
    eventually_sync(lambda: get_json(f"{address}/livez")[0] == 200, what=two)
    eventually_sync(lambda: get_json(f"{address}/status.json")[0] == 200, what=two)
    eventually_sync(lambda: get(f"{address}/readyz")[0] == 200, what=two)
