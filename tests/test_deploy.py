"""deploy/: what the schemas accept, what our own commands accept, and what has to fit together does."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from own_commands import accepts

from sensai_serve.assignment import cyclic
from serving.address import parse_address
from serving.placement.domains import hosts_of, losses_covered
from serving.placement.worker_map import parse_workers, workers_on
from serving.runtime.endpoint import Security
from serving.settings import Settings
from serving.transports.http.asgi.sites import Sites

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
DEPLOY = Path(__file__).parents[1] / "deploy"
KUBERNETES = sorted(DEPLOY.glob("kubernetes/*.yaml"))
COMPOSE = sorted(DEPLOY.glob("compose/*.yaml"))
OBJECTS = {
    (item["kind"], item["metadata"]["name"]): item
    for file in KUBERNETES
    for item in yaml.safe_load_all(file.read_text())
    if "metadata" in item
}
GATEWAYS, NODES = ("Deployment", "sensai-gateway"), ("StatefulSet", "sensai-node")
BUNDLED = [key for key in OBJECTS if key[0] != "ServiceMonitor"]
"""What Kubernetes itself has a schema for."""


@pytest.mark.parametrize("key", BUNDLED, ids="-".join)
def test_kubernetes_takes_every_object(key: tuple[str, str]) -> None:
    if importlib.util.find_spec("kubernetes_validate") is None:
        pytest.skip("kubernetes-validate is not installed")
    import kubernetes_validate

    for version in ("1.29", kubernetes_validate.latest_version()):
        kubernetes_validate.validate(OBJECTS[key], version, strict=True)


def test_kustomize_builds_all_of_it() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl")
    done = subprocess.run(
        ["kubectl", "kustomize", DEPLOY / "kubernetes"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    assert {item["kind"] for item in built} == {kind for kind, _ in OBJECTS} | {"ConfigMap"}
    (given,) = [item for item in built if item["kind"] == "ConfigMap"]
    mounted = {
        volume["configMap"]["name"]
        for item in built
        if item["kind"] in ("Deployment", "StatefulSet")
        for volume in item["spec"]["template"]["spec"]["volumes"]
        if "configMap" in volume
    }
    assert mounted == {given["metadata"]["name"]}


def test_pods_are_found_by_what_selects_them() -> None:
    for (kind, name), item in OBJECTS.items():
        if kind in ("Deployment", "StatefulSet"):
            labels = item["spec"]["template"]["metadata"]["labels"]
            assert item["spec"]["selector"]["matchLabels"] == labels
            assert OBJECTS["Service", name]["spec"]["selector"] == labels
            assert OBJECTS["PodDisruptionBudget", name]["spec"]["selector"]["matchLabels"] == labels
            pod = item["spec"]["template"]["spec"]
            for constraint in pod["topologySpreadConstraints"]:
                assert constraint["labelSelector"]["matchLabels"] == labels
            (container,) = pod["containers"]
            ports = {port["name"] for port in container["ports"]}
            assert {port["targetPort"] for port in OBJECTS["Service", name]["spec"]["ports"]} == ports - {"health"}
            assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
            accepts(container["command"], container["args"])
    target = OBJECTS["HorizontalPodAutoscaler", "sensai-gateway"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) in OBJECTS
    monitor, service = OBJECTS["ServiceMonitor", "sensai-gateway"], OBJECTS["Service", "sensai-gateway"]
    assert monitor["spec"]["selector"]["matchLabels"] == service["metadata"]["labels"]
    assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet"])
def test_pods_are_confined(kind: str) -> None:
    """What a pod may write, use and see is bounded, secrets are read by its user alone, and only peers reach it."""
    ((name, item),) = ((name, item) for (of, name), item in OBJECTS.items() if of == kind)
    pod = item["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"memory", "ephemeral-storage"} <= set(container["resources"]["limits"])
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > wait + 10  # and `drain_s`
    for volume in pod["volumes"]:
        assert "sizeLimit" in volume.get("emptyDir", {"sizeLimit": ""})
        assert volume.get("secret", {}).get("defaultMode", 0) & 0o007 == 0
    policy = OBJECTS["NetworkPolicy", name]["spec"]
    assert policy["podSelector"]["matchLabels"] == item["spec"]["selector"]["matchLabels"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    ports = {port["name"] for port in container["ports"]}
    assert all({port["port"] for port in rule["ports"]} <= ports and rule["from"] for rule in policy["ingress"])


@pytest.mark.parametrize("key", [GATEWAYS, NODES], ids="-".join)
def test_probes_ask_the_listener_that_answers_health_without_tls(key: tuple[str, str]) -> None:
    (container,) = OBJECTS[key]["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    flag = "--listen=health" if key == GATEWAYS else "--health"
    assert f"{flag}=0.0.0.0:{ports['health']}" in container["args"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe].get("grpc") or container[probe]["httpGet"]
        assert ports.get(asked["port"], asked["port"]) == ports["health"]
        assert ("grpc" in container[probe]) == (key == NODES)


@pytest.fixture(scope="module")
def encrypted() -> dict[tuple[str, str], dict[str, Any]]:
    """What the overlay with TLS makes of the objects."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl")
    command = ["kubectl", "kustomize", DEPLOY / "kubernetes-tls"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return {(item["kind"], item["metadata"]["name"]): item for item in yaml.safe_load_all(done.stdout)}


def test_the_overlay_with_tls_changes_nothing_else(encrypted) -> None:
    assert {key for key in encrypted if key[0] != "ConfigMap"} == set(OBJECTS)
    for key in (GATEWAYS, NODES):
        before, after = (where[key]["spec"]["template"]["spec"] for where in (OBJECTS, encrypted))
        (old,), (new,) = before["containers"], after["containers"]
        assert new["args"][: len(old["args"])] == old["args"]
        assert new["volumeMounts"][: len(old["volumeMounts"])] == old["volumeMounts"]
        same = {"args", "volumeMounts"}
        assert {k: v for k, v in new.items() if k not in same} == {k: v for k, v in old.items() if k not in same}
        assert {k: v for k, v in after.items() if k not in ("containers", "volumes")} == {
            k: v for k, v in before.items() if k not in ("containers", "volumes")
        }


@pytest.mark.parametrize("key", [GATEWAYS, NODES], ids="-".join)
def test_certificates_and_tokens_are_where_the_arguments_say(encrypted, key: tuple[str, str]) -> None:
    pod = encrypted[key]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    accepts(container["command"], container["args"])
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    named = [Path(argument.partition("=")[2]) for argument in container["args"] if "=/run/secrets/" in argument]
    for path in named:
        secret = mounts[str(path.parent)]["secret"]
        assert path.name in (("tls.crt", "tls.key", "ca.crt") if "tls" in secret["secretName"] else ("token", "tokens"))
        assert secret["defaultMode"] & 0o007 == 0
    assert {str(path.parent) for path in named} == {where for where, volume in mounts.items() if "secret" in volume}
    if importlib.util.find_spec("kubernetes_validate") is not None:
        import kubernetes_validate

        kubernetes_validate.validate(encrypted[key], kubernetes_validate.latest_version(), strict=True)


def test_the_overlay_asks_the_same_nodes_over_tls(encrypted) -> None:
    plain = parse_workers([], DEPLOY / "kubernetes/workers", Security())
    tls = parse_workers([], DEPLOY / "kubernetes-tls/workers", Security())
    assert plain.device_of(10) == tls.device_of(10)
    for before, after in zip(plain.devices, tls.devices, strict=True):
        assert after.endpoint is not None
        assert (str(after.endpoint), after.endpoint.encrypted) == (str(before.endpoint).replace("://", "s://"), True)
    (monitored,) = encrypted["ServiceMonitor", "sensai-gateway"]["spec"]["endpoints"]
    assert monitored["scheme"] == "https"
    (workers,) = [item for (kind, _), item in encrypted.items() if kind == "ConfigMap"]
    assert workers["data"]["workers"] == (DEPLOY / "kubernetes-tls/workers").read_text()


def test_gateways_show_the_token_that_nodes_ask_for() -> None:
    pods = [OBJECTS[key]["spec"]["template"]["spec"] for key in (GATEWAYS, NODES)]
    arguments = [argument for pod in pods for argument in pod["containers"][0]["args"] if "token" in argument]
    secrets = [volume["secret"]["secretName"] for pod in pods for volume in pod["volumes"] if "secret" in volume]
    assert [argument.partition("=")[2] for argument in arguments] == ["/run/secrets/sensai/token"] * 2
    assert secrets == ["sensai-token"] * 2


def test_bodies_fit_into_the_gateways_memory() -> None:
    (container,) = OBJECTS[GATEWAYS]["spec"]["template"]["spec"]["containers"]
    given = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"] if "=" in argument)
    assert container["resources"]["limits"]["memory"] == "1Gi"
    assert int(given["max-bodies-bytes"]) <= 2**30 // 4


def test_the_budget_is_what_the_code_promises_for_these_nodes() -> None:
    """Ten workers of the published cyclic code, as `make demo` makes them."""
    workers = parse_workers([], DEPLOY / "kubernetes/workers", Security())
    hosts = hosts_of(workers.devices, workers.device_of(10))
    nodes = OBJECTS["StatefulSet", "sensai-node"]["spec"]
    assert set(hosts) == {f"sensai-node-{i}.{nodes['serviceName']}" for i in range(nodes["replicas"])}
    for host, its in hosts.items():
        assert set(workers_on(workers, host.partition(".")[0])) == its
    budget = OBJECTS["PodDisruptionBudget", "sensai-node"]["spec"]["maxUnavailable"]
    assert budget == losses_covered(cyclic(10, (0, 1, 3)), hosts)


@pytest.mark.parametrize("file", COMPOSE, ids=lambda file: file.stem)
def test_compose_files_fit_together(file: Path) -> None:
    services: dict[str, dict[str, Any]] = yaml.safe_load(file.read_text())["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services)
        assert all("healthcheck" in services[other] for other in service.get("depends_on", {}))
        if "entrypoint" in service:
            accepts(service["entrypoint"], service["command"])
        assert service.get("hostname", name) == name
    assert "gateway" in services


def test_every_node_of_compose_has_workers() -> None:
    workers = parse_workers([], DEPLOY / "compose/workers", Security())
    services = yaml.safe_load((DEPLOY / "compose/nodes.yaml").read_text())["services"]
    assert sorted(w for name in set(services) - {"gateway"} for w in workers_on(workers, name)) == list(range(10))


@pytest.mark.parametrize("file", COMPOSE, ids=lambda file: file.stem)
def test_docker_compose_takes_every_file(file: Path) -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no docker compose")
    done = subprocess.run(
        ["docker", "compose", "-f", file, "config", "-q"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_gateways_answer_to_the_names_that_they_are_found_by() -> None:
    """Requests over HTTP by any other name are refused."""
    (container,) = OBJECTS[GATEWAYS]["spec"]["template"]["spec"]["containers"]
    (hosts,) = [a.removeprefix("--allowed-host=") for a in container["args"] if a.startswith("--allowed-host=")]
    assert {entry["name"] for entry in container["env"]} == {"NAMESPACE"}
    allowed = hosts.replace("$(NAMESPACE)", "models").split()
    assert Settings(http="0.0.0.0:8000", allowed_hosts=tuple(allowed)).allowed_hosts == tuple(allowed)
    sites = Sites(parse_address("0.0.0.0:8000"), tuple(allowed), ())
    service = OBJECTS["Service", "sensai-gateway"]["metadata"]["name"]
    for name in (service, f"{service}.models", f"{service}.models.svc", f"{service}.models.svc.cluster.local"):
        assert sites.refusal("POST", {b"host": f"{name}:8000".encode()}) is None
    assert sites.refusal("POST", {b"host": b"elsewhere.example"}) is not None
    for file in COMPOSE:
        gateway = yaml.safe_load(file.read_text())["services"]["gateway"]["command"]
        assert gateway[gateway.index("--allowed-host") + 1] == "gateway"
