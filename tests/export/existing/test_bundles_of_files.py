"""Ensembles, replicas, classifiers of some classes each: what their bundles promise and answer, served and not."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx_fixtures import forest, linear

import sensai_serve
from export.existing.assemble import make_bundle
from export.existing.members import members_of, read_mapping
from export.existing.options import BundleOptions
from sensai_serve.assignment import full
from sensai_serve.cli.main import main
from sensai_serve.errors import DataError, InputError, OutputExistsError
from sensai_serve.guarantees import guarantees
from sensai_serve.merge import MergePlan, merge
from sensai_serve.preprocess import normalise
from serving.backends.ort.fused import Fused
from serving.backends.ort.inline import share_run
from serving.engine.gateway import Gateway
from serving.engine.options import GatewayOptions
from serving.engine.workers.health import State

LABELS = ("cat", "dog", "owl")
ONE = np.asarray([[0.3, -1.0, 2.0, 0.1]], np.float32)


def served(bundle, inputs=ONE, **options):
    """The answer of a running gateway."""

    async def ask():
        gateway = Gateway(bundle, GatewayOptions(**options))
        await gateway.start()
        try:
            return (await gateway.infer(inputs)).answer
        finally:
            await gateway.stop()

    return asyncio.run(ask())


def command(*arguments) -> None:
    """Run a command that succeeds."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 0


def test_an_ensemble_is_the_mean_of_its_members(network, tmp_path) -> None:
    paths = [network(f"member{seed}", seed=seed) for seed in range(3)]
    bundle = make_bundle(members_of(paths), tmp_path / "bundle", labels=LABELS)
    assert (bundle.manifest.kind, bundle.manifest.merge.rule, bundle.assignment.redundancy) == ("full", "mean", 3)
    assert guarantees(bundle.assignment).losses_covered == 2
    copies = sensai_serve.load(bundle).scores(ONE)
    answer = served(bundle, wait="all")
    np.testing.assert_allclose(answer.scores[0], np.mean(copies, axis=0)[0], atol=1e-6)
    assert answer.complete


def test_a_bundle_says_what_its_networks_take_in_memory(network, tmp_path) -> None:
    path = network("wide", shape=(2**18,))  # 3 MiB of weights
    bundle = make_bundle(members_of([path]), tmp_path / "bundle", labels=LABELS, options=BundleOptions(replicas=2))
    taken = {subnet.memory for subnet in bundle.manifest.subnets}
    assert len(taken) == 1
    assert 3 * 2**20 <= next(iter(taken)).weights <= 24 * 2**20


def test_an_ensemble_survives_a_member_that_fails(network, tmp_path) -> None:
    paths = [network(f"member{seed}", seed=seed) for seed in range(3)]
    bundle = make_bundle(members_of(paths), tmp_path / "bundle", labels=LABELS)
    copies = sensai_serve.load(bundle).scores(ONE)
    answer = served(bundle, wait="all", faults="1:drop=1,after=8")
    assert answer.missing == (1,)
    np.testing.assert_allclose(answer.scores[0], np.mean([copies[0], copies[2]], axis=0)[0], atol=1e-6)


def test_replicas_share_one_file(network, tmp_path) -> None:
    bundle = make_bundle(members_of([network()]), tmp_path / "bundle", labels=LABELS, options=BundleOptions(replicas=3))
    assert [spec.file for spec in bundle.manifest.subnets] == ["subnets/00.onnx"] * 3
    assert (bundle.manifest.merge.rule, bundle.manifest.kind) == ("majority", "full")
    assert bundle.manifest.merge.wait == "first"
    assert share_run(bundle, Fused(bundle, range(3)).run, "first") == pytest.approx(1 / 3)  # the others need not run
    slow = "0+1:delay=20s,after=8"
    one = served(bundle, faults=slow, inline_ms=0)
    assert one.arrived == (2,)  # nothing is waited for but the first
    assert one.class_id.tolist() == served(bundle, wait="all").class_id.tolist()


def test_with_the_wait_decided_a_wrong_replica_is_outvoted(network, tmp_path) -> None:
    paths = [network(weight=np.eye(4, 3) * 9)]
    options = BundleOptions(replicas=3, wait="decided")
    bundle = make_bundle(members_of(paths), tmp_path / "bundle", labels=LABELS, options=options)
    assert bundle.manifest.merge.wait == "decided"
    for _ in range(5):
        answer = served(bundle, faults="0:random,after=8", patience=0)
        assert (answer.class_id[0], answer.exact) == (2, True)


@st.composite
def sound_and_wrong(draw) -> tuple[np.ndarray, np.ndarray]:
    """Scores FP32 [1, 3] of a sound replica, which sum to one, and any scores of a wrong one."""
    logits = draw(arrays(np.float64, 3, elements=st.floats(-12, 12)))
    wrong = draw(arrays(np.float32, (1, 3), elements=st.floats(0, 1, width=32)))
    return (np.exp(logits) / np.exp(logits).sum())[None].astype(np.float32), wrong


@given(scores=sound_and_wrong(), at=st.integers(0, 2), rule=st.sampled_from(["majority", "mean", "log"]))
def test_when_a_wrong_replica_of_three_is_outvoted(scores, at, rule) -> None:
    """What the table in docs/bundling.md says."""
    sound, wrong = scores
    second, best = np.sort(sound[0].astype(np.float64))[1:]
    odds = [np.log(p / (1 - p)) for p in np.clip([second, best], 1e-4, 1 - 1e-4)]
    outvoted = {"majority": best >= 0.5 > second, "mean": best - second > 0.5, "log": odds[1] - odds[0] > 9.22}[rule]
    answer = merge(MergePlan(full(3, 3), rule), [wrong if worker == at else sound for worker in range(3)])
    assert not outvoted or answer.class_id[0] == sound[0].argmax()


def test_a_wrong_replica_that_answers_first_is_found_by_golden_samples(network, tmp_path) -> None:
    options = BundleOptions(replicas=3)
    bundle = make_bundle(members_of([network()]), tmp_path / "bundle", labels=LABELS, options=options)

    async def ask() -> list[int]:
        gateway = Gateway(bundle, GatewayOptions(faults="0:random,after=8;1+2:delay=3ms,after=8", inline_ms=0))
        await gateway.start()
        first = []
        for _ in range(1000):
            first.append((await gateway.infer(ONE)).answer.arrived[0])
            if gateway.workers[0].state is State.QUARANTINED:
                break
            await asyncio.sleep(0.001)
        await gateway.stop()
        return first

    first = asyncio.run(ask())
    assert first[0] == 0  # nothing outvotes it
    assert 0 < len(first) < 1000


def test_one_against_rest(network, tmp_path) -> None:
    paths = [network(name, outputs=1, activation="Sigmoid", seed=at) for at, name in enumerate(LABELS)]
    bundle = make_bundle(
        members_of(zip(paths, ([name] for name in LABELS), strict=True)), tmp_path / "bundle", labels=LABELS
    )
    assert bundle.assignment.rows == ((0,), (1,), (2,))
    assert bundle.manifest.kind == "explicit"
    copies = np.concatenate(sensai_serve.load(bundle).scores(ONE), axis=1)
    assert served(bundle).class_id[0] == copies.argmax()


def test_any_matrix_from_a_mapping_file(network, tmp_path) -> None:
    network("whole")
    network("pair", outputs=3, seed=1)
    network("not-cat", outputs=2, seed=2)
    (tmp_path / "models.toml").write_text(
        "[[models]]\nfile = 'whole.onnx'\n"
        "[[models]]\nfile = 'pair.onnx'\nclasses = ['owl', '-', 'dog']\nactivation = 'softmax'\n"
        "[[models]]\nfile = 'not-cat.onnx'\nclasses = ['-', 0]\noutput = 'y'\n"
    )
    bundle = make_bundle(read_mapping(tmp_path / "models.toml"), tmp_path / "bundle", labels=LABELS)
    assert bundle.assignment.rows == ((0, 1, 2), (2, 1), (0,))
    assert guarantees(bundle.assignment).redundancy == 2
    _, pair, cat = sensai_serve.load(bundle).scores(ONE)
    logits = ONE @ np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(pair, expected[:, [0, 2]], atol=1e-6)
    assert cat.shape == (1, 1)


def test_logits_of_some_classes_are_judged_each_by_itself(network, tmp_path) -> None:
    path = network(outputs=2)
    bundle = make_bundle(members_of([(path, ["cat", "dog"]), network("rest")]), tmp_path / "bundle", labels=LABELS)
    assert bundle.manifest.subnets[0].head == "sigmoid"  # an input may be of neither class


def test_a_reference_answers_where_workers_are_lost(network, tmp_path) -> None:
    path = network("whole")
    bundle = make_bundle(
        members_of([(network(name, outputs=1), [name]) for name in LABELS]),
        tmp_path / "bundle",
        labels=LABELS,
        reference=members_of([path])[0],
    )
    answer = served(bundle, on_missing="reference", faults="0:drop=1,after=8")
    logits = ONE @ np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    assert (answer.degraded, answer.class_id[0]) == (True, logits.argmax())


def labelled(seed: int, count: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs of three classes, which a linear network with the given weight tells apart nearly always."""
    random = np.random.default_rng(seed)
    weight = random.normal(size=(4, 3))
    x = random.normal(size=(count, 4)).astype(np.float32)
    y = (x @ weight + random.gumbel(size=(count, 3)) * 0.3).argmax(axis=1)
    return x, y, weight


def test_with_labels_members_are_measured_alone_merged_and_with_workers_lost(network, tmp_path) -> None:
    x, y, weight = labelled(0)
    noise = np.random.default_rng(1)
    paths = [network(f"m{at}", weight=weight + noise.normal(size=weight.shape) * 0.7) for at in range(4)]
    made = sensai_serve.bundle(paths, LABELS, data=(x, y))
    found = made.manifest.accuracy
    assert found["test_inputs"] == 400
    assert len(found["members"]) == 4
    assert found["test"] > np.mean(found["members"])
    assert found["test"] >= found["one_lost"]["mean"] >= found["one_lost"]["worst"]
    assert found["two_lost"]["worst"] <= found["two_lost"]["mean"]
    kept = np.load(made.save(tmp_path / "bundle").path / "evaluation.npz")
    classifier = sensai_serve.load(tmp_path / "bundle")
    given = classifier.predict_tensor(normalise(x[:50], classifier.manifest.input)).class_id
    np.testing.assert_array_equal(given, kept["class_id"][:50])
    np.testing.assert_array_equal(kept["label"], y)


def test_temperatures_make_an_overconfident_member_comparable(network, tmp_path) -> None:
    x, y, weight = labelled(2)
    wrong = weight + np.random.default_rng(3).normal(size=weight.shape) * 2
    paths = [network("good", weight=weight * 3), network("loud", weight=wrong * 60)]
    with_, without = (
        sensai_serve.bundle(paths, LABELS, data=(x, y), merge="mean", calibrate=calibrate).manifest
        for calibrate in (True, False)
    )
    good, loud = with_.provenance["temperatures"]
    assert loud > 5 > good
    assert with_.accuracy["test"] > without.accuracy["test"] + 0.05
    assert without.provenance["temperatures"] == [1, 1]


def test_the_best_rule_is_chosen_on_labels(network) -> None:
    x, y, weight = labelled(4)
    random = np.random.default_rng(5)
    paths = [
        network(f"m{at}", weight=weight + random.normal(size=weight.shape) * (0.1 if at == 0 else 3)) for at in range(3)
    ]
    merge = sensai_serve.bundle(paths, LABELS, data=(x, y)).manifest.merge
    assert merge.rule in ("mean", "log")  # a majority of three cannot trust the one that is right
    assert sensai_serve.bundle(paths, LABELS, data=(x, y), merge="majority").manifest.merge.rule == "majority"


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1 / 255, 0.0), (2 / 255, 1.0)])
def test_labelled_pictures_show_how_they_are_normalised(network, scale, shift) -> None:
    random = np.random.default_rng(0)
    y = random.integers(0, 3, 120)
    x = random.integers(60, 120, (120, 3, 4, 4))
    x[np.arange(120), y] += 12
    weight = np.kron(np.eye(3), np.ones((16, 1))) / 16
    bias = 150 * scale - shift  # a network that is sure of nothing below it
    model = linear(shape=(3, 4, 4), weight=weight, activation="Softmax")
    path = network(model=shifted(model, bias, scale))
    made = sensai_serve.bundle([path], LABELS, data=(x.astype(np.uint8), y))
    tried = made.manifest.provenance["normalisations_tried"]
    assert len(tried) == 5
    assert made.manifest.accuracy["test"] == max(tried.values()) > 0.9


def shifted(model, bias, scale):
    """The network's logits, those of every class below `bias` cut off, as a ReLU does, and sharpened."""
    from onnx import helper, numpy_helper

    softmax = model.graph.node.pop()
    low, high = np.float32(70 * scale - (150 * scale - bias)), np.float32(8 / scale)
    model.graph.initializer.extend([numpy_helper.from_array(low, "low"), numpy_helper.from_array(high, "high")])
    nodes = [("Sub", ["logits", "low"], "a"), ("Relu", ["a"], "b"), ("Mul", ["b", "high"], "c")]
    model.graph.node.extend(helper.make_node(kind, given, [out]) for kind, given, out in nodes)
    softmax.input[0] = "c"
    model.graph.node.append(softmax)
    return model


def test_inputs_without_labels_become_golden_samples(network, tmp_path, capsys) -> None:
    x = np.random.default_rng(0).normal(size=(30, 4))
    np.save(tmp_path / "inputs.npy", x)
    (tmp_path / "labels.txt").write_text("cat\ndog\nowl\n")
    arguments = [str(network()), "--labels", str(tmp_path / "labels.txt"), "--data", str(tmp_path / "inputs.npy")]
    command("bundle", *arguments, "--out", tmp_path / "bundle", "--quiet")
    assert "golden samples: inputs of the data" in capsys.readouterr().out
    golden = sensai_serve.Bundle.open(tmp_path / "bundle").golden()
    assert all(any(np.allclose(one, row) for row in x.astype(np.float32)) for one in golden.inputs)
    assert len(set(golden.class_id.tolist())) == 3
    assert sensai_serve.Bundle.open(tmp_path / "bundle").manifest.accuracy == {}


def test_without_data_the_manifest_says_that_golden_samples_are_random(network, tmp_path) -> None:
    one, two = (make_bundle(members_of([network()]), tmp_path / name, labels=LABELS) for name in "ab")
    assert one.manifest.provenance["golden"] == "64 random inputs"
    assert one.manifest.checksums == two.manifest.checksums


def test_from_file_to_answer_on_the_command_line(network, tmp_path, capsys) -> None:
    network("first")
    network("second", model=forest(labels=["owl", "cat", "dog"], zip_map=True))
    files = [str(tmp_path / name) for name in ("first.onnx", "second.onnx")]
    command("bundle", *files, "--out", tmp_path / "pets", "--quiet")
    out = capsys.readouterr().out
    assert "2 workers for 3 classes, full assignment, merged by mean" in out
    assert "first.onnx: takes float [4], gives logits, softmax added (y)" in out
    np.save(tmp_path / "x.npy", ONE)
    command("predict", tmp_path / "pets", tmp_path / "x.npy", "--json")
    assert json.loads(capsys.readouterr().out)["label"] in LABELS


def test_three_lines_of_python(network, tmp_path) -> None:
    made = sensai_serve.bundle(models=[network("a"), network("b", seed=1)], labels=["cat", "dog", "owl"])
    assert made.predict(ONE[0]).label in LABELS
    saved = made.save(tmp_path / "bundle")
    assert sensai_serve.load(saved).predict(ONE[0]) == made.predict(ONE[0])
    with pytest.raises(OutputExistsError):
        made.save(tmp_path / "bundle")
    with pytest.raises(InputError, match="no option 'replica', expected replicas"):
        sensai_serve.bundle([network()], LABELS, replica=3)
    with pytest.raises(InputError, match="model 0 is a int"):
        sensai_serve.bundle([3], LABELS)
    with pytest.raises(DataError, match="label 3, expected 0 to 2"):
        sensai_serve.bundle([network()], LABELS, data=(np.zeros((6, 4)), [0, 1, 2, 3, 0, 1]))


SCRIPT = """
import sys
for name in ("torch", "torchvision", "torch_pruning", "onnxscript", "sklearn", "matplotlib", "fastapi"):
    sys.modules[name] = None  # importing it raises ImportError
import pkgutil, importlib, export.existing
for module in pkgutil.walk_packages(export.existing.__path__, "export.existing."):
    importlib.import_module(module.name)
from sensai_serve.cli.main import main
main(sys.argv[1:])
"""


def test_bundles_are_made_where_torch_is_not_installed(network, tmp_path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\nowl\n")
    x, y, _ = labelled(0, 60)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    arguments = ["bundle", network(), "--labels", tmp_path / "labels.txt", "--out", tmp_path / "bundle", "--quiet"]
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments), "--data", f"npz:{tmp_path / 'data.npz'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "of the test part right" in done.stdout
