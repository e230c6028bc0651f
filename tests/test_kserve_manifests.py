"""deploy/kserve/: what KServe's published schemas accept, our own command accepts, and what has to fit together."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from own_commands import accepts

from serving.address import parse_address
from serving.settings import load_settings
from serving.transports.http.asgi.sites import Sites

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
FOLDER = Path(__file__).parents[1] / "deploy/kserve"
SCHEMATA = json.loads((Path(__file__).parent / "fixtures/kserve_schemas.json").read_text())
OBJECTS = {item["kind"]: item for item in (yaml.safe_load(file.read_text()) for file in FOLDER.glob("*.yaml"))}
RUNTIME, SERVICE = OBJECTS["ClusterServingRuntime"], OBJECTS["InferenceService"]
(CONTAINER,) = RUNTIME["spec"]["containers"]
MODEL = SERVICE["spec"]["predictor"]["model"]


def check(item: dict[str, Any]) -> None:
    """Validate one object."""
    published = SCHEMATA[item["kind"]]
    assert item["apiVersion"] == published["apiVersion"]
    jsonschema.Draft202012Validator(published["schema"]).validate(item)


@pytest.mark.parametrize("kind", OBJECTS)
def test_kserve_takes_every_object(kind: str) -> None:
    check(OBJECTS[kind])


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("ClusterServingRuntime", lambda spec: spec.pop("containers")),
        ("ClusterServingRuntime", lambda spec: spec["containers"][0].pop("name")),
        ("ClusterServingRuntime", lambda spec: spec["containers"][0].update(arguments=[])),
        ("ClusterServingRuntime", lambda spec: spec["supportedModelFormats"][0].update(autoSelect="yes")),
        ("ClusterServingRuntime", lambda spec: spec["supportedModelFormats"][0].update(priority=0)),
        ("InferenceService", lambda spec: spec.pop("predictor")),
        ("InferenceService", lambda spec: spec["predictor"]["model"]["modelFormat"].pop("name")),
        ("InferenceService", lambda spec: spec["predictor"]["model"].update(storageURI="")),
    ],
)
def test_what_kserve_would_refuse_is_refused(kind: str, spoil: Callable[[dict[str, Any]], object]) -> None:
    item = copy.deepcopy(OBJECTS[kind])
    spoil(item["spec"])
    with pytest.raises(jsonschema.ValidationError):
        check(item)


def test_the_service_is_one_that_the_runtime_serves() -> None:
    formats = RUNTIME["spec"]["supportedModelFormats"]
    assert MODEL["runtime"] == RUNTIME["metadata"]["name"]
    assert {entry["name"] for entry in formats} == {MODEL["modelFormat"]["name"]}
    assert MODEL["protocolVersion"] in RUNTIME["spec"]["protocolVersions"]


def test_the_server_is_where_kserve_looks_for_it() -> None:
    accepts(CONTAINER["command"], CONTAINER["args"])
    where, *flags = CONTAINER["args"]
    given = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    scraped = RUNTIME["spec"]["annotations"]
    assert where == "/mnt/models"
    assert given["http"] == "0.0.0.0:8080"
    assert (scraped["prometheus.kserve.io/port"], scraped["prometheus.kserve.io/path"]) == ("8080", "/metrics")
    assert {CONTAINER[probe]["httpGet"]["port"] for probe in ("readinessProbe", "livenessProbe")} == {8080}


def test_the_server_is_confined() -> None:
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert "memory" in CONTAINER["resources"]["limits"]


@pytest.mark.parametrize("environment", [CONTAINER["env"], MODEL["env"]], ids=["runtime", "service"])
def test_requests_come_by_the_names_that_kserve_gives(environment, monkeypatch: pytest.MonkeyPatch) -> None:
    for entry in environment:  # as KServe fills the names in
        value = entry["value"].replace("{{.Name}}", "digits").replace("{{.Namespace}}", "default")
        assert "{{" not in value
        monkeypatch.setenv(entry["name"], value)
    settings = load_settings(None, http="0.0.0.0:8080")
    sites = Sites(parse_address("0.0.0.0:8080"), settings.allowed_hosts, ())
    names = ["digits-predictor", "digits-predictor.default", "digits.default.svc.cluster.local", "10.0.0.7:8080"]
    if environment is MODEL["env"]:
        names.append("digits-default.example.com")
    for name in names:
        assert sites.refusal("POST", {b"host": name.encode()}) is None, name
    assert sites.refusal("POST", {b"host": b"elsewhere.example"}) is not None
