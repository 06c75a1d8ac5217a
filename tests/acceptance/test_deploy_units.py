"""The systemd and Kubernetes files of deploy/ are well-formed, unprivileged, and agree with the settings."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.routing import Route

from dispatcher.core.stats import Stats
from dispatcher.exceptions import ExitCode
from dispatcher.operate.observer import Observer
from dispatcher.settings import Settings
from dispatcher.web.app import make_app
from tests.conftest import need

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "systemd" / "dispatcher.service"
KUBERNETES = {path.stem: path for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))}
GRACE = Settings.model_fields["grace"].default

# The margin above --grace that the guide asks of a supervisor's stop time-out.
SPARE = 20


def manifest(name: str) -> Any:
    return yaml.safe_load(KUBERNETES[name].read_text())


# -- systemd -----------------------------------------------------------------------------------------


def service_section() -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's keys have capitals
    parser.read(UNIT)
    return parser["Service"]


def test_systemd_accepts_the_unit_and_finds_it_hardened(tmp_path: Path):
    program = need("systemd-analyze")
    dispatcher = shutil.which("true")
    text = UNIT.read_text().replace("/srv/app/.venv/bin/dispatcher", str(dispatcher))
    unit = tmp_path / UNIT.name
    unit.write_text(text)
    done = subprocess.run([program, "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    security = [program, "security", "--offline=true", "--threshold=20", str(unit)]  # out of 100, less is better
    done = subprocess.run(security, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_systemd_lets_the_dispatcher_drain_and_starts_it_again():
    service = service_section()
    assert service["Restart"] == "always"
    assert service["KillSignal"] == "SIGTERM"
    assert int(service["TimeoutStopSec"]) >= GRACE + SPARE
    assert "--grace" not in service["ExecStart"]


def test_systemd_does_not_restart_after_an_error_that_remains():
    codes = {int(code) for code in service_section()["RestartPreventExitStatus"].split()}
    assert codes == {
        ExitCode.USAGE,
        ExitCode.APPLICATION,
        ExitCode.NOTHING_TO_DELIVER,
        ExitCode.POSITION,
        ExitCode.HISTORY_LOST,
    }


def variables() -> set[str]:
    """Every environment variable of `dispatcher run`."""
    return {
        "DISPATCHER_APP",
        "DISPATCHER_IMPORT",
        *(f"DISPATCHER_{name.upper()}" for name in Settings.model_fields),
    }


def test_the_environment_files_name_variables_that_exist():
    text = (DEPLOY / "systemd" / "dispatcher.env").read_text()
    assert set(re.findall(r"^(\w+)=", text, re.MULTILINE)) <= variables()
    container = manifest("deployment")["spec"]["template"]["spec"]["containers"][0]
    assert {one["name"] for one in container["env"]} <= variables()
    assert set(manifest("secret")["stringData"]) <= variables()


# -- Kubernetes --------------------------------------------------------------------------------------


def pod() -> dict[str, Any]:
    return manifest("deployment")["spec"]["template"]


def container() -> dict[str, Any]:
    (only,) = pod()["spec"]["containers"]
    return only


def port() -> int:
    (only,) = container()["ports"]
    assert only["name"] == "http"
    return only["containerPort"]


def test_all_manifests_are_in_the_kustomization():
    text = KUBERNETES["kustomization"].read_text()
    listed = set(re.findall(r"^  (?:# )?- (\S+\.yaml)$", text, re.MULTILINE))
    assert listed == {path.name for path in KUBERNETES.values()} - {"kustomization.yaml"}


@pytest.mark.parametrize("name", sorted(set(KUBERNETES) - {"kustomization"}))
def test_every_manifest_has_a_kind_and_the_label(name: str):
    read = manifest(name)
    assert read["apiVersion"]
    assert read["kind"]
    assert read["metadata"]["labels"] == {"app.kubernetes.io/name": "dispatcher"}


def test_every_selector_selects_the_pods():
    labels = pod()["metadata"]["labels"]
    spread = pod()["spec"]["topologySpreadConstraints"]
    selectors = [
        manifest("deployment")["spec"]["selector"]["matchLabels"],
        manifest("service")["spec"]["selector"],
        manifest("pod-disruption-budget")["spec"]["selector"]["matchLabels"],
        *(one["labelSelector"]["matchLabels"] for one in spread),
    ]
    assert all(selector == labels for selector in selectors)
    assert (
        manifest("service-monitor")["spec"]["selector"]["matchLabels"] == manifest("service")["metadata"]["labels"]
    )


def test_pods_are_unprivileged_and_may_drain():
    spec = pod()["spec"]
    assert spec["terminationGracePeriodSeconds"] >= GRACE + SPARE
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def test_one_pod_stays_available_when_nodes_are_drained():
    assert manifest("pod-disruption-budget")["spec"]["minAvailable"] < manifest("deployment")["spec"]["replicas"]


def test_all_manifests_use_one_port():
    (listen,) = [one["value"] for one in container()["env"] if one["name"] == "DISPATCHER_HTTP"]
    assert listen == f"0.0.0.0:{port()}"
    (service,) = manifest("service")["spec"]["ports"]
    (endpoint,) = manifest("service-monitor")["spec"]["endpoints"]
    assert (service["name"], service["port"], service["targetPort"]) == ("http", port(), "http")
    assert endpoint["port"] == "http"
    assert pod()["metadata"]["annotations"]["prometheus.io/port"] == str(port())


def test_probes_and_scrapes_use_existing_paths():
    observer = Observer(Stats(), group="any", settings=Settings(), gauges=dict)
    answered = {route.path for route in make_app(observer).routes if isinstance(route, Route)}
    probes = [container()[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
    assert [probe["path"] for probe in probes] == ["/livez", "/livez", "/readyz"]
    (endpoint,) = manifest("service-monitor")["spec"]["endpoints"]
    scraped = {endpoint["path"], pod()["metadata"]["annotations"]["prometheus.io/path"]}
    assert {*scraped, *(probe["path"] for probe in probes)} <= answered
