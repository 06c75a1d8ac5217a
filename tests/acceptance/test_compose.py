"""The compose file is well-formed, pinned and unprivileged, and its commands work.

The tests need no container engine. `docker-compose config` reads the file. The commands of the services run on an
embedded server. Except for addresses, the commands get the environment of their services.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from dispatcher.embedded.binary import find_mongod
from dispatcher.embedded.server import EmbeddedMongo
from tests.conftest import need
from tests.support import PATIENCE

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
DAEMONS = [name for name, service in SERVICES.items() if not service.get("profiles")]
URL = "mongodb://mongo:27017/?replicaSet=rs0"
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def seconds(text: str) -> int:
    assert text.endswith("s"), text
    return int(text[:-1])


# -- the file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", [None, "writer", "monitoring", "kafka"])
def test_docker_compose_accepts_the_file(profile: str | None):
    program = need("docker-compose")
    arguments = () if profile is None else ("--profile", profile)
    done = subprocess.run(
        [program, "-f", str(COMPOSE), *arguments, "config"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)["services"]
    in_profile = {name for name, one in SERVICES.items() if profile in one.get("profiles", ())}
    assert {*DAEMONS, *in_profile} <= set(shown)


def test_all_images_are_pinned_by_a_version():
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    images = [service["image"] for service in SERVICES.values()]
    assert bases
    for image in [*bases, *images]:
        assert re.search(r":v?\d+\.\d+", image), image


def test_mongodb_is_version_8():
    assert SERVICES["mongo"]["image"].startswith("mongo:8.")


@pytest.mark.parametrize("name", list(SERVICES))
def test_services_do_not_run_as_root(name: str):
    user = SERVICES[name]["user"].partition(":")[0]
    assert user not in ("", "0", "root")


@pytest.mark.parametrize("name", ["dispatcher", "relay", "worker", "writer"])
def test_our_services_have_no_rights_on_their_machine(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_image_itself_does_not_run_as_root():
    (user,) = re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)
    assert user == SERVICES["dispatcher"]["user"]


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"writer"}))
def test_daemons_have_a_health_check_and_are_restarted(name: str):
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", list(SERVICES))
def test_ports_are_published_on_the_loopback_address_only(name: str):
    for port in SERVICES[name].get("ports", ()):
        assert port.startswith("127.0.0.1:"), port


@pytest.mark.parametrize(("service", "directory"), [("mongo", "/data/db"), ("kafka", "/var/lib/kafka/data")])
def test_the_data_is_in_a_named_volume(service: str, directory: str):
    (volume,) = SERVICES[service]["volumes"]
    name, target = volume.split(":")
    assert name in yaml.safe_load(COMPOSE.read_text())["volumes"]
    assert target == directory


@pytest.mark.parametrize("name", ["dispatcher", "relay", "worker"])
def test_dispatchers_may_drain_before_they_are_killed(name: str):
    from dispatcher.settings import Settings

    assert "--grace" not in SERVICES[name]["command"]
    assert seconds(SERVICES[name]["stop_grace_period"]) > Settings.model_fields["grace"].default


def test_the_files_that_the_image_copies_exist_and_are_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text()
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in line.split():
            assert (ROOT / source).exists(), source
            assert f"!{source}\n" in ignored, source
    assert "-c constraints.txt" in DOCKERFILE


def mounts(name: str) -> dict[str, str]:
    """Paths in the container of a service -> the paths of this repository that are mounted there."""
    bound = (volume for volume in SERVICES[name]["volumes"] if volume.startswith("./"))
    return {target: source for source, target, mode in (volume.split(":") for volume in bound) if mode == "ro"}


def test_prometheus_scrapes_dispatchers_where_they_listen():
    listening = {name for name, one in SERVICES.items() if "DISPATCHER_HTTP" in one.get("environment", ())}
    (address,) = {SERVICES[name]["environment"]["DISPATCHER_HTTP"] for name in listening}
    host, port = address.split(":")
    assert host == "0.0.0.0"
    assert SERVICES["dispatcher"]["ports"] == [f"127.0.0.1:${{DISPATCHER_PORT:-{port}}}:{port}"]
    config = yaml.safe_load((ROOT / mounts("prometheus")["/etc/prometheus"] / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert (set(found["names"]), found["type"], found["port"]) == (listening, "A", int(port))
    for file in config["rule_files"]:
        assert (ROOT / "deploy" / "prometheus" / file).is_file()


def test_grafana_finds_prometheus_and_the_dashboard():
    seen = mounts("grafana")
    provisioning = ROOT / seen["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "dispatcher.yml").read_text())["providers"]
    (shown,) = [target for target in seen if target.endswith(".json")]
    assert Path(shown).parent == Path(provider["options"]["path"])
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == shown
    assert (ROOT / seen[shown]).is_file()


# -- the commands ------------------------------------------------------------------------------------


def environment(service: str, mongo: EmbeddedMongo) -> dict[str, str]:
    said = SERVICES[service]["environment"]
    values = {name: value.replace(URL, mongo.url) for name, value in said.items() if not value.startswith("${")}
    values["DISPATCHER_HTTP"] = "127.0.0.1:0"  # not reachable from other machines, as in a container
    return {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]), **values}


@contextmanager
def running(command: list[str], variables: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as sink:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=sink, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def check_health(mongo: EmbeddedMongo) -> int:
    return subprocess.run(
        SERVICES["dispatcher"]["healthcheck"]["test"][1:],
        cwd=ROOT,
        env=environment("dispatcher", mongo),
        stdout=subprocess.DEVNULL,
        check=False,
    ).returncode


@pytest.mark.slow
def test_the_dispatcher_delivers_the_changes_of_the_writer_and_is_healthy(mongo: EmbeddedMongo, tmp_path: Path):
    with MongoClient(mongo.url) as client:
        client.drop_database("shop")
        client.mongoz_dispatcher.positions.delete_one({"_id": "default:0"})
    assert check_health(mongo) == 1

    command = SERVICES["dispatcher"]["command"]
    log = tmp_path / "log"
    with running(command, environment("dispatcher", mongo), log) as daemon:
        deadline = time.monotonic() + 20
        while "dispatcher.started" not in log.read_text():
            assert daemon.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        assert check_health(mongo) == 0

        words = [word.replace(URL, mongo.url) for word in SERVICES["writer"]["command"]]
        words[words.index("--seconds") + 1] = "2"
        subprocess.run(words, cwd=ROOT, env=environment("writer", mongo), check=True, timeout=30)
        with MongoClient(mongo.url) as client:
            while client.shop.audit_trail.count_documents({}) < 5:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)

        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(PATIENCE) == 0, log.read_text()
    assert check_health(mongo) == 0
    with MongoClient(mongo.url) as client:
        client.drop_database("shop")


def test_the_image_and_the_service_have_the_same_command():
    (command,) = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert json.loads(command) == SERVICES["dispatcher"]["command"]


@contextmanager
def uninitiated_mongod(folder: Path) -> Iterator[int]:
    """Runs the command of the service `mongo` on a free port. Its replica set is not initiated."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program, *arguments = SERVICES["mongo"]["command"]
    assert program == "mongod"
    # Not reachable from other machines, as in a container.
    arguments[arguments.index("--bind_ip_all")] = "--bind_ip=127.0.0.1"
    command = [str(find_mongod()), *arguments, "--port", str(port), "--dbpath", str(folder), "--nounixsocket"]
    with running(command, dict(os.environ), folder / "log"):
        yield port


def test_the_health_check_initiates_the_replica_set(tmp_path: Path, mongo: EmbeddedMongo):
    script = SERVICES["mongo"]["healthcheck"]["test"][-1]
    config = json.loads(re.search(r"rs\.initiate\((\{.*\})\)", script)[1])
    assert config["_id"] == SERVICES["mongo"]["command"][2]
    (member,) = config["members"]
    assert member["host"] == f"{SERVICES['mongo']['hostname']}:27017"
    assert member["host"] in SERVICES["dispatcher"]["environment"]["SHOP_MONGODB_URL"]

    with uninitiated_mongod(tmp_path) as port:
        if shutil.which("mongosh"):
            until_healthy(script.replace(member["host"], f"127.0.0.1:{port}"), port)
        with MongoClient("127.0.0.1", port, directConnection=True, serverSelectionTimeoutMS=60_000) as client:
            if not shutil.which("mongosh"):
                member["host"] = f"127.0.0.1:{port}"
                client.admin.command("replSetInitiate", config)
            assert client.admin.command("replSetGetStatus")["set"] == "rs0"
            with pytest.raises(OperationFailure, match="already initialized"):
                client.admin.command("replSetInitiate", config)


def until_healthy(script: str, port: int) -> None:
    deadline = time.monotonic() + 60
    command = ["mongosh", f"mongodb://127.0.0.1:{port}/", "--quiet", "--eval", script]
    while subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode:
        assert time.monotonic() < deadline, "the health check never passed"
