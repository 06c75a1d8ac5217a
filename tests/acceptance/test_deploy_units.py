"""The systemd and Kubernetes files of deploy/ are well-formed, unprivileged, and agree with the settings."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import typer
import yaml
from starlette.routing import Route

from dispatcher.cli import app
from dispatcher.cli.secret_files import SECRETS
from dispatcher.core.stats import Stats
from dispatcher.exceptions import ExitCode
from dispatcher.kafka.config import load_config
from dispatcher.operate.observer import Observer
from dispatcher.settings import Settings
from dispatcher.web.app import make_app
from tests.conftest import need

DEPLOY = Path(__file__).parents[2] / "deploy"
SYSTEMD = DEPLOY / "systemd"
UNITS = {"run": SYSTEMD / "dispatcher.service", "relay": SYSTEMD / "dispatcher-relay.service"}
KUBERNETES = {path.stem: path for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))}
GRACE = Settings.model_fields["grace"].default

# The stop time-out of a supervisor must be at least this number of seconds longer than --grace, says the guide.
SPARE = 20


KAFKA = DEPLOY / "kubernetes-kafka"
KAFKA_MANIFESTS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(KAFKA.glob("*.yaml"))}


def manifest(name: str) -> Any:
    if name in KUBERNETES:
        return yaml.safe_load(KUBERNETES[name].read_text())
    return KAFKA_MANIFESTS[name]


# -- systemd -----------------------------------------------------------------------------------------


def service_section(command: str) -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's keys have capitals
    parser.read(UNITS[command])
    return parser["Service"]


@pytest.mark.parametrize("more", [[], ["kafka.conf"], ["url.conf", "kafka.conf"]], ids=" ".join)
@pytest.mark.parametrize("command", UNITS)
def test_systemd_accepts_the_unit_and_finds_it_hardened(command: str, more: list[str], tmp_path: Path):
    program = need("systemd-analyze")
    dispatcher = shutil.which("true")
    text = UNITS[command].read_text().replace("/srv/app/.venv/bin/dispatcher", str(dispatcher))
    unit = tmp_path / UNITS[command].name
    unit.write_text(text)
    further = tmp_path / f"{unit.name}.d"
    further.mkdir()
    for name in more:
        shutil.copy(SYSTEMD / name, further)
    done = subprocess.run([program, "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    security = [program, "security", "--offline=true", "--threshold=20", str(unit)]  # out of 100, less is better
    done = subprocess.run(security, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("command", UNITS)
def test_systemd_lets_a_process_drain_and_starts_it_again(command: str):
    service = service_section(command)
    assert service["Restart"] == "always"
    assert service["KillSignal"] == "SIGTERM"
    assert int(service["TimeoutStopSec"]) >= GRACE + SPARE
    assert re.search(rf"/dispatcher {command}\b", service["ExecStart"])
    assert "--grace" not in service["ExecStart"]


@pytest.mark.parametrize("command", UNITS)
def test_systemd_does_not_restart_after_a_permanent_error(command: str):
    codes = {int(code) for code in service_section(command)["RestartPreventExitStatus"].split()}
    assert codes == {
        ExitCode.USAGE,
        ExitCode.APPLICATION,
        ExitCode.NOTHING_TO_DELIVER,
        ExitCode.POSITION,
        ExitCode.HISTORY_LOST,
    }


def test_both_units_are_hardened_alike():
    of_run, of_relay = (dict(service_section(command)) for command in UNITS)
    own = {name for name in of_run if of_run[name] != of_relay.get(name)}
    assert own == {"ExecStart", "EnvironmentFile"}
    assert set(of_relay) == set(of_run)


def variables(command: str = "run") -> set[str]:
    """Every environment variable of a command."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # it is a group
    named = {str(one.envvar) for one in commands[command].params if one.envvar}
    return {*named, "DISPATCHER_HTTP_TOKEN", *(f"{secret}_FILE" for secret in SECRETS)}


@pytest.mark.parametrize(("name", "command"), [("dispatcher.env", "run"), ("relay.env", "relay")])
def test_the_environment_files_of_systemd_name_variables_that_exist(name: str, command: str):
    named = set(re.findall(r"^(?:# )?(DISPATCHER_\w+)=", (SYSTEMD / name).read_text(), re.MULTILINE))
    assert {"DISPATCHER_APP", "DISPATCHER_URL", "DISPATCHER_KAFKA"} <= named <= variables(command)
    (file,) = re.findall(r"EnvironmentFile=/etc/dispatcher/(\S+)", UNITS[command].read_text())
    assert file == name


def test_the_credentials_of_systemd_become_files_that_the_settings_name():
    text = (SYSTEMD / "url.conf").read_text()
    assert re.findall(r"^LoadCredential=([\w.]+):/etc/dispatcher/\1$", text, re.MULTILINE) == ["url", "ca.crt"]
    (setting,) = re.findall(r"^Environment=(\w+)=%d/url$", text, re.MULTILINE)
    assert setting in variables() & variables("relay")


def test_every_example_of_a_url_with_a_password_uses_tls():
    guides = [DEPLOY.parent / "docs" / "how-to" / f"{name}.md" for name in ("systemd", "kubernetes")]
    files = [path for path in (*DEPLOY.rglob("*"), *guides) if path.is_file()]
    texts = {path: path.read_text().replace("\\\n    ", "") for path in files}
    urls = {
        (path.name, url)
        for path, text in texts.items()
        for url in re.findall(r"mongodb://[^\s'\"]*@[^\s'\"]*", text)
    }
    assert {name for name, _ in urls} >= {"dispatcher.env", "relay.env", "secret.yaml", "systemd.md"}
    assert [(name, url) for name, url in urls if parse_qs(urlsplit(url).query).get("tls") != ["true"]] == []


def test_the_manifests_name_variables_that_exist():
    assert {one["name"] for one in container()["env"]} <= variables()
    assert {one["name"] for one in container("workers")["env"]} <= variables()
    assert {one["name"] for one in container("relay")["env"]} <= variables("relay")


@pytest.mark.parametrize("name", ["deployment", "relay"])
def test_the_secrets_of_pods_are_files_of_the_secret(name: str):
    (mount,) = [one for one in container(name)["volumeMounts"] if one["name"] == "secret"]
    (volume,) = [one for one in pod(name)["spec"]["volumes"] if one["name"] == "secret"]
    secret = manifest("secret")
    assert volume["secret"]["secretName"] == secret["metadata"]["name"]
    files = {one["name"]: one["value"] for one in container(name)["env"] if one["name"].endswith("_FILE")}
    assert set(files) == {f"{secret}_FILE" for secret in SECRETS}
    url = secret["stringData"]["url"]
    authority = parse_qs(urlsplit(url).query)["tlsCAFile"]
    mounted = {f"{mount['mountPath']}/{key}" for key in secret["stringData"]}
    assert mounted == {*files.values(), *authority}
    assert "tls=true" in url
    assert " " not in url


def test_the_properties_of_kafka_are_accepted(tmp_path: Path):
    """The properties name files that the Secret and the credentials provide."""
    pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
    conf = (SYSTEMD / "kafka.conf").read_text()
    assert re.findall(r"LoadCredential=([\w.-]+):", conf) == ["kafka.properties", "kafka-password"]
    assert "DISPATCHER_KAFKA_CONFIG=%d/kafka.properties" in conf
    text = (KAFKA / "kafka.properties").read_text()
    secret = {"password": "secret", "ca.crt": "-----BEGIN CERTIFICATE-----"}
    assert set(secret) == set(KAFKA_MANIFESTS["secret"]["stringData"])
    for name, content in secret.items():
        (tmp_path / name).write_text(content)
    properties = tmp_path / "kafka.properties"
    properties.write_text(text.replace("/etc/kafka-secret", str(tmp_path)))
    read = {one.name: one.value for one in load_config("kafka:9092", properties).properties}
    assert read["sasl.password"] == "secret"
    assert Path(read["ssl.ca.location"]).is_file()


# -- Kubernetes --------------------------------------------------------------------------------------


def pod(name: str = "deployment") -> dict[str, Any]:
    return manifest(name)["spec"]["template"]


def container(name: str = "deployment") -> dict[str, Any]:
    (only,) = pod(name)["spec"]["containers"]
    return only


def port(name: str = "deployment") -> int:
    (only,) = container(name)["ports"]
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


@pytest.mark.parametrize("name", ["deployment", "relay"])
def test_pods_are_unprivileged_and_may_drain(name: str):
    spec = pod(name)["spec"]
    assert spec["terminationGracePeriodSeconds"] >= GRACE + SPARE
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


@pytest.mark.parametrize(("name", "pods"), [("network-policy", "deployment"), ("relay-network-policy", "relay")])
def test_only_prometheus_may_connect_to_the_pods(name: str, pods: str):
    policy = manifest(name)["spec"]
    assert policy["podSelector"]["matchLabels"] == pod(pods)["metadata"]["labels"]
    assert policy["policyTypes"] == ["Ingress"]
    (rule,) = policy["ingress"]
    assert [list(one) for one in rule["from"]] == [["namespaceSelector"]]
    assert rule["ports"] == [{"port": "http"}]


def test_the_disruption_budget_of_the_pods_lets_nodes_be_drained():
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
    kinds = ("startup", "liveness", "readiness")
    probes = [container(name)[f"{kind}Probe"]["httpGet"] for name in ("deployment", "relay") for kind in kinds]
    assert [probe["path"] for probe in probes] == ["/livez", "/livez", "/readyz"] * 2
    (endpoint,) = manifest("service-monitor")["spec"]["endpoints"]
    scraped = {endpoint["path"], pod()["metadata"]["annotations"]["prometheus.io/path"]}
    assert {*scraped, *(probe["path"] for probe in probes)} <= answered


# -- Kubernetes with Kafka ---------------------------------------------------------------------------


def test_all_manifests_of_kafka_are_in_the_kustomization():
    made = KAFKA_MANIFESTS["kustomization"]
    assert made["resources"][0] == "../kubernetes"
    assert made["patches"] == [{"path": "workers.yaml"}]
    text = (KAFKA / "kustomization.yaml").read_text()
    listed = set(re.findall(r"^  (?:# )?- (\S+\.yaml)$", text, re.MULTILINE))
    assert listed == {f"{name}.yaml" for name in KAFKA_MANIFESTS} - {"kustomization.yaml", "workers.yaml"}
    assert made["namespace"] == manifest("kustomization")["namespace"]


def test_a_relay_has_a_standby_and_other_labels_than_a_worker():
    relay = KAFKA_MANIFESTS["relay"]
    assert relay["kind"] == "Deployment"
    assert relay["spec"]["replicas"] == 2
    labels = pod("relay")["metadata"]["labels"]
    assert labels != pod()["metadata"]["labels"]
    (spread,) = pod("relay")["spec"]["topologySpreadConstraints"]
    budget = KAFKA_MANIFESTS["relay-pod-disruption-budget"]["spec"]
    selectors = [
        relay["spec"]["selector"]["matchLabels"],
        spread["labelSelector"]["matchLabels"],
        budget["selector"]["matchLabels"],
        KAFKA_MANIFESTS["relay-service"]["spec"]["selector"],
    ]
    assert all(selector == labels for selector in selectors)
    assert budget["minAvailable"] < relay["spec"]["replicas"]


def test_prometheus_finds_relays_like_dispatchers():
    monitor = manifest("service-monitor")["spec"]
    service = KAFKA_MANIFESTS["relay-service"]
    assert monitor["selector"]["matchLabels"] == service["metadata"]["labels"]
    (published,) = service["spec"]["ports"]
    assert (published["name"], published["port"], published["targetPort"]) == ("http", port("relay"), "http")
    of_workers = {name: one for name, one in pod()["metadata"]["annotations"].items() if "prometheus" in name}
    assert pod("relay")["metadata"]["annotations"] == of_workers


def test_relay_and_workers_are_the_same_application_with_the_same_brokers():
    assert container("relay")["image"] == container()["image"]
    (program, _, *application) = container()["args"]
    assert container("relay")["args"] == [program, "relay", *application]
    of_relay, of_workers = ({one["name"]: one for one in container(name)["env"]} for name in ("relay", "workers"))
    for name in ("DISPATCHER_KAFKA", "DISPATCHER_KAFKA_CONFIG"):
        assert of_relay[name] == of_workers[name]
    mounts = [*container()["volumeMounts"], *container("workers")["volumeMounts"]]
    assert container("relay")["volumeMounts"] == mounts
    assert pod("relay")["spec"]["volumes"] == [*pod()["spec"]["volumes"], *pod("workers")["spec"]["volumes"]]
    (made,) = KAFKA_MANIFESTS["kustomization"]["configMapGenerator"]
    keys = {one.partition("=")[0] for one in made["literals"]} | set(made["files"])
    assert keys == {"brokers", "kafka.properties"}
    assert of_relay["DISPATCHER_KAFKA"]["valueFrom"]["configMapKeyRef"] == {"name": made["name"], "key": "brokers"}


def test_kustomize_builds_workers_from_the_dispatchers():
    if shutil.which("kubectl") is None:  # Debian's kubectl 1.20 does not know all fields, so CI can't install it
        pytest.skip("kubectl is not installed")
    built = subprocess.run(["kubectl", "kustomize", str(KAFKA)], capture_output=True, text=True, check=True).stdout
    deployments = {
        one["metadata"]["name"]: one for one in yaml.safe_load_all(built) if one["kind"] == "Deployment"
    }
    assert set(deployments) == {"dispatcher", "relay"}
    (worker,) = deployments["dispatcher"]["spec"]["template"]["spec"]["containers"]
    assert worker["args"] == container()["args"]
    names = {one["name"] for one in worker["env"]}
    assert names == {one["name"] for name in ("deployment", "workers") for one in container(name)["env"]}
    assert "replicas" in deployments["dispatcher"]["spec"]
    (volume,) = [one for one in deployments["relay"]["spec"]["template"]["spec"]["volumes"] if "configMap" in one]
    assert volume["configMap"]["name"].startswith("kafka-")
