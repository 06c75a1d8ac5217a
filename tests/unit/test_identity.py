"""Detecting that a process is certainly dead; unknown cases count as alive."""

import os
import subprocess
import sys

import pytest

from dispatcher.core.identity import Identity, own_identity

pytestmark = pytest.mark.skipif(not own_identity().boot, reason="there is no /proc here")


@pytest.fixture
def child():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()
    process.stdin.close()


def identity_of(pid: int) -> Identity:
    code = "from dispatcher.core.identity import _stat; import sys; print(_stat(int(sys.argv[1])).started)"
    started = subprocess.run([sys.executable, "-c", code, str(pid)], capture_output=True, text=True, check=True)
    where = own_identity().boot.rpartition("/")[0]
    return Identity("here", pid, f"{where}/{started.stdout.strip()}")


def test_a_live_process_is_not_dead(child):
    assert not own_identity().is_dead
    assert not identity_of(child.pid).is_dead


def test_a_killed_process_is_dead(child):
    before = identity_of(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie: its exit code is not collected
    assert before.is_dead
    child.wait()
    assert before.is_dead


def test_a_process_with_a_reused_id_is_another_process(child):
    one = identity_of(child.pid)
    where, _, started = one.boot.rpartition("/")
    assert one._replace(boot=f"{where}/{int(started) - 1}").is_dead


@pytest.mark.parametrize("boot", ["", "elsewhere/pid:[4026531836]/1", "nonsense"])
def test_a_process_of_another_machine_is_unknown(boot):
    assert not Identity("there", 2**22 - 1, boot).is_dead


@pytest.mark.parametrize("pid", [0, -1, -(2**31)])
def test_special_process_ids_are_not_queried(pid):
    assert not own_identity()._replace(pid=pid).is_dead


@pytest.mark.parametrize("document", [{}, {"host": 1, "pid": "1", "boot": 3}, {"pid": None, "boot": None}])
def test_a_malformed_identity_is_unknown(document):
    assert not Identity.read(document).is_dead
