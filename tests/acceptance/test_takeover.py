"""Takeovers between dispatcher processes of one group after SIGKILL, SIGTERM or SIGSTOP."""

import signal
import time
from typing import Any

import pytest

from dispatcher.exceptions import ExitCode
from tests.ledger import APP, IMAGES, Ledger
from tests.support import Daemon, eventually_sync

LEASE = 2.0

BUSY = 30.0
"""Seconds that a busy machine may need for work that an idle machine does immediately."""


@pytest.fixture
def ledger(mongo, database, tmp_path):
    return Ledger(tmp_path / "ledger", mongo.url, database)


@pytest.fixture
def lease():
    """The leases of the daemons in seconds."""
    return LEASE


@pytest.fixture
def two(ledger, foreign, tmp_path, lease):
    """Two daemons; the first one holds the partition, the second one is a standby."""
    foreign.create_collection("accounts", **IMAGES)
    arguments = {"cwd": tmp_path, **ledger.environment, "DISPATCHER_SAVE_INTERVAL": "0.1"}
    first = Daemon(APP, "--lease", str(lease), **arguments)
    try:
        eventually_sync(lambda: first.lines("lease.claimed"), what="the first one holds the partition")
        second = Daemon(APP, "--lease", str(lease), **arguments)
        try:
            second.wait_started()
            yield first, second
        finally:
            second.kill()
    finally:
        first.kill()


def write(foreign: Any, ledger: Ledger, number: int) -> None:
    foreign["accounts"].insert_one({"name": "a", "n": number})
    eventually_sync(lambda: any(entry.n == number for entry in ledger()), what=f"{number} is delivered")


@pytest.mark.slow
def test_a_standby_takes_over_from_a_suspended_daemon_within_the_lease(ledger, foreign, two):
    """SIGSTOP lasts longer than the lease: the resumed daemon moves no position and starts no delivery."""
    first, second = two
    positions = foreign.client[f"{foreign.name}_state"]["positions"]
    write(foreign, ledger, 1)
    first.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    foreign["accounts"].insert_one({"name": "a", "n": 2})
    eventually_sync(lambda: second.lines("lease.claimed"), what="the standby takes over")
    assert time.monotonic() - began < LEASE + BUSY
    eventually_sync(lambda: any(entry.n == 2 for entry in ledger()))
    saved = positions.find_one({"partition": 0})
    first.process.send_signal(signal.SIGCONT)
    eventually_sync(lambda: first.lines("lease.lost"), what="the first daemon notices the takeover")
    write(foreign, ledger, 3)
    now = positions.find_one({"partition": 0})
    assert (now["owner"], now["term"]) == (saved["owner"], saved["term"])
    assert now["token"] >= saved["token"]
    # After the second term has begun, the first daemon starts no delivery.
    entries = ledger()
    begins = min(entry.at for entry in entries if entry.term == 2)
    assert [entry.n for entry in entries if entry.term == 1 and entry.at > begins] == []
    assert [entry.n for entry in entries if entry.term == 2] in ([2, 3], [1, 2, 3])
    assert first.terminate() == ExitCode.OK


@pytest.mark.slow
@pytest.mark.parametrize("lease", [1_000.0])
def test_a_standby_takes_over_immediately_from_a_stopped_or_killed_daemon(ledger, foreign, two, tmp_path, lease):
    """On the same machine the death of a process is known; on another machine the lease must expire."""
    first, second = two
    write(foreign, ledger, 1)
    assert first.terminate() == ExitCode.OK
    write(foreign, ledger, 2)  # the deadline of `write` is much shorter than the lease
    third = Daemon(APP, "--lease", str(lease), cwd=tmp_path, **ledger.environment)
    try:
        third.wait_started()
        second.kill()
        write(foreign, ledger, 3)
        assert third.lines("lease.claimed")
        assert third.terminate() == ExitCode.OK
    finally:
        third.kill()
    assert [entry.term for entry in ledger() if entry.n == 3] == [3]


@pytest.mark.slow
def test_the_lease_of_a_lost_machine_must_expire(ledger, foreign, two):
    """Other machines do not know that the process is dead. So the standby waits until the lease expires."""
    first, second = two
    write(foreign, ledger, 1)
    state = foreign.client[f"{foreign.name}_state"]
    elsewhere = {"$set": {"boot": "another-machine/pid:[1]/1", "host": "elsewhere"}}
    pid = first.process.pid
    assert state["positions"].update_one({"partition": 0, "pid": pid}, elsewhere).modified_count == 1
    assert state["members"].update_one({"pid": pid}, elsewhere).modified_count == 1
    first.kill()
    began = time.monotonic()
    write(foreign, ledger, 2)
    took = time.monotonic() - began
    assert second.lines("lease.claimed")
    assert LEASE / 4 < took < LEASE + BUSY
    assert second.terminate() == ExitCode.OK
    assert [entry.term for entry in ledger() if entry.n == 2] == [2]
