"""What holds for any bundle holds for replicas, ensembles and cascades: nodes, Triton, replacement, faults, plans."""

from __future__ import annotations

import asyncio
import json
import shutil

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import sensai_serve
from benchmarks.subjects.networks import as_bundle
from sensai_serve.bundles import Bundle
from sensai_serve.cli.main import main
from sensai_serve.making import MadeBundle
from serving.engine.gateway import Gateway
from serving.engine.options import GatewayOptions
from serving.placement.worker_map import parse_workers
from serving.runtime.endpoint import Security

LABELS = ("cat", "dog", "owl")
KINDS = ("replicas", "ensemble", "cascade")


@pytest.fixture
def make(network, tmp_path):
    """Makes a bundle of one of `KINDS`; all give the first label, whatever the wait."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(4, 3))
    x = random.normal(size=(60, 4)).astype(np.float32)
    y = (x @ weight).argmax(axis=1)

    def made(kind: str, seed: int = 0, **options) -> MadeBundle:
        noise = np.random.default_rng(seed).normal(size=(2, *weight.shape)) * 0.1
        paths = [network(f"m{at}", weight=weight * 5 + one) for at, one in enumerate(noise)]
        given = {"data": (x, y), "mean": 0, "std": 1, "name": "pets"} | options
        if kind == "replicas":
            return sensai_serve.bundle(paths[:1], LABELS, replicas=3, **given)
        return sensai_serve.bundle(paths, LABELS, cascade=kind == "cascade", **given)

    return made


def command(capsys, *arguments) -> str:
    """Run a command that succeeds; what it says."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    return " ".join(out.split())


def ask(server, inputs: np.ndarray) -> tuple[int, dict]:
    """The label of one input, by tritonclient, and the parameters of the reply."""
    with triton.InferenceServerClient(server.address) as client:
        name = client.get_model_metadata("pets")["inputs"][0]["name"]
        given = triton.InferInput(name, [1, 4], "FP32")
        given.set_data_from_numpy(inputs)
        reply = client.infer("pets", [given])
        return int(reply.as_numpy("class_id")[0]), reply.get_response()["parameters"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_is_slow_then_dead_then_the_model_is_replaced(make, kind, tmp_path, run_server) -> None:
    models = tmp_path / "models"
    models.mkdir()
    path = make(kind).save(models / "pets").path
    one = np.asarray([[0.3, -1.0, 2.0, 0.1]], np.float32)
    wanted = int(sensai_serve.load(path).predict_tensor(one).class_id[0])
    with run_server(path, repository=models, inference={"allow_faults": True}) as server:
        label, said = ask(server, one)
        assert label == wanted
        for fault in ("delay=1ms", "kill"):
            reply = httpx.post(f"{server.url}/v1/faults", json={"worker": 0, "fault": fault})
            assert reply.status_code == 200, reply.text
            label, said = ask(server, one)
            assert label == wanted
        assert "0" not in said["arrived"].split(",")
        make(kind, seed=1).save(tmp_path / "next")
        shutil.rmtree(path)
        (tmp_path / "next").rename(path)
        httpx.post(f"{server.url}/v2/repository/models/pets/load", timeout=60).raise_for_status()
        label, said = ask(server, one)
        assert label == wanted
        assert "0" in said["arrived"].split(",") or kind != "ensemble"


@pytest.mark.parametrize("kind", ["replicas", "cascade"])
def test_workers_on_a_node(make, kind, tmp_path, node_process) -> None:
    path = make(kind).save(tmp_path / "pets").path
    workers = range(Bundle.open(path).assignment.n_workers)
    one = np.asarray([[0.3, -1.0, 2.0, 0.1]], np.float32)
    wanted = int(sensai_serve.load(path).predict_tensor(one).class_id[0])
    with node_process(path, "--grpc", "127.0.0.1:0") as (_, url):
        placed = parse_workers([f"{','.join(map(str, workers))}={url}"], None, Security())
        options = GatewayOptions(devices=placed.devices, workers=placed, backend="remote", patience=0)

        async def ask_once() -> int:
            gateway = Gateway(Bundle.open(path), options)
            await gateway.start()
            try:
                return int((await gateway.infer(one)).answer.class_id[0])
            finally:
                await gateway.stop()

        assert asyncio.run(ask_once()) == wanted


def test_replicas_are_as_many_models_of_triton(make, tmp_path, capsys) -> None:
    path = make("replicas").save(tmp_path / "pets").path
    said = command(capsys, "export", path, "--triton", tmp_path / "models")
    assert "version 1 of 3 models, pets-00 to pets-02" in said
    own = Bundle.open(path).subnet(0)
    for worker in range(3):
        folder = tmp_path / "models" / f"pets-0{worker}"
        config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        assert list(config.output[0].dims) == [3]
        assert (folder / "1/model.onnx").read_bytes() == own


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("replicas", "every worker runs the same file: 3 replicas of one network"),
        ("ensemble", "an ensemble of 2 networks for the whole task"),
    ],
)
def test_what_inspect_and_place_say(make, kind, said, tmp_path, capsys) -> None:
    path = make(kind).save(tmp_path / "pets").path
    out = command(capsys, "inspect", path)
    assert said in out
    assert "smaller subnets" not in out  # nothing was cut
    assert "tolerates the loss of any 1 of 2 other hosts" in command(capsys, "place", path, "grpc://a:1", "grpc://b:1")


def test_a_plan_of_a_cascade_asks_one_after_the_other(make, tmp_path, capsys) -> None:
    path = make("cascade").save(tmp_path / "pets").path
    options = ("--latency", "p50=2ms,p99=8ms", "--requests", "100", "--json", "--quiet")
    (row,) = json.loads(command(capsys, "plan", path, *options))["expected"]
    assert row["asked"] < 2
    (everyone,) = [
        row
        for row in json.loads(command(capsys, "plan", path, *options, "--wait", "all"))["expected"]
        if row["redundancy"] == 2
    ]
    assert everyone["p50"] > row["p50"]
    manifest = json.loads((path / "manifest.json").read_text())
    cheap, dear = sorted(manifest["subnets"], key=lambda subnet: subnet["worker"] != asked_first(manifest))
    cheap["microseconds"], dear["microseconds"] = 10.0, 1000.0
    (path / "manifest.json").write_text(json.dumps(manifest))
    (sooner,) = json.loads(command(capsys, "plan", path, *options))["expected"]
    assert sooner["p50"] < 0.1 * row["p50"]  # the latency is that of the file that takes longest


def asked_first(manifest: dict) -> int:
    return manifest["merge"]["confident"]["order"][0]


def test_the_reference_of_a_cascade_is_served_beside_it(make, network, tmp_path) -> None:
    """As `sensai bench latency` does."""
    reference = network("whole", activation="Softmax")
    bundle = make("cascade", reference=reference).save(tmp_path / "pets")
    assert bundle.manifest.merge.wait == "confident"
    whole = bundle.reference()
    assert whole is not None
    alone = as_bundle(whole, bundle, tmp_path / "alone", "reference")
    assert (alone.manifest.merge.wait, alone.manifest.merge.confident) == (None, None)
