"""Cascades: the cheap file answers where it is sure, and what that saves and costs is what was asked for."""

from __future__ import annotations

import asyncio
import itertools
import math

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx_fixtures import linear

import sensai_serve
from export.existing.cascade import Cascade, ask, best_alone, confidence_of, fit_cascade
from sensai_serve.assignment import full
from sensai_serve.bundles import Bundle
from sensai_serve.cli.main import main
from sensai_serve.merge import MergePlan
from sensai_serve.merge.lost_workers import ScoredInputs, accuracy
from serving.engine.gateway import Gateway
from serving.engine.options import GatewayOptions

LABELS = ("cat", "dog", "owl")


def scored(
    seed: int, sharpness: tuple[float, ...], count: int = 300, rule: str = "mean"
) -> tuple[ScoredInputs, np.ndarray]:
    """Workers for three classes that see the truth through noise, the sharper the less."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, count)
    scores = []
    for sharp in sharpness:
        logits = sharp * np.eye(3)[truth] + random.normal(size=(count, 3))
        scores.append((np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32))
    return ScoredInputs(MergePlan(full(3, len(sharpness)), rule), scores), truth


@given(
    seed=st.integers(0, 1000),
    sharpness=st.lists(st.floats(0.5, 5), min_size=2, max_size=4),
    loss=st.floats(0, 0.1),
    rule=st.sampled_from(["majority", "mean", "log"]),
)
def test_accuracy_is_kept_and_nothing_costs_more_than_asking_all(seed, sharpness, loss, rule) -> None:
    inputs, truth = scored(seed, tuple(sharpness), 80, rule)
    cascade = Cascade(tuple(float(1 + at) for at in range(len(sharpness))), loss)
    thresholds = fit_cascade(inputs, truth, cascade)
    asked = ask(inputs, cascade, thresholds)
    everybody = accuracy(inputs.labels(), truth)
    wanted = best_alone(inputs, truth) - loss
    assert accuracy(asked.labels, truth) >= min(wanted, everybody) - 1e-9
    assert asked.cost <= sum(cascade.costs) + 1e-9
    if everybody < wanted - 1e-9 and accuracy(asked.labels, truth) < wanted - 1e-9:
        assert set(thresholds) == {math.inf}  # nothing reaches it: all are asked


def test_two_workers_are_asked_as_seldom_as_can_be() -> None:
    inputs, truth = scored(0, (2.0, 4.0))
    cascade = Cascade((1.0, 4.0), 0.01)
    asked = ask(inputs, cascade, fit_cascade(inputs, truth, cascade))
    first = inputs.scores[0].astype(np.float64)
    lead = np.sort(first, axis=1)[:, -1] - np.sort(first, axis=1)[:, -2]
    labels, wanted = first.argmax(axis=1), best_alone(inputs, truth) - 0.01
    costs = [
        1 + 4 * float(np.mean(lead < threshold))
        for threshold in [*np.unique(lead), math.inf]
        if accuracy(np.where(lead >= threshold, labels, inputs.labels()), truth) >= wanted
    ]
    assert asked.cost == pytest.approx(min(costs), abs=0.05)  # not every lead is tried


def test_order_is_that_of_cost() -> None:
    inputs, truth = scored(1, (4.0, 2.0, 3.0))
    cascade = Cascade((9.0, 1.0, 3.0), 0.05)
    confidence = confidence_of(inputs, cascade, fit_cascade(inputs, truth, cascade))
    assert confidence.order == (1, 2, 0)
    assert confidence.inputs == 300
    assert 0 < sum(confidence.stopped) <= 1


@pytest.fixture
def files(network):
    """A small network that sees half of the input, a large one that sees all of it; and labelled inputs."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(64, 3))
    x = random.normal(size=(1000, 64)).astype(np.float32)
    y = (x @ weight + random.gumbel(size=(1000, 3))).argmax(axis=1)
    half = weight * (np.arange(64) < 50)[:, None]
    large = linear(shape=(64,), weight=weight)
    large.graph.initializer.append(numpy_helper.from_array(np.eye(64, 2000, dtype=np.float32), "wide"))
    large.graph.initializer.append(numpy_helper.from_array(np.eye(2000, 64, dtype=np.float32), "narrow"))
    flat, *others = large.graph.node
    others[0].input[0] = "same"  # more work for nothing
    work = [
        helper.make_node("MatMul", ["flat", "wide"], ["more"]),
        helper.make_node("MatMul", ["more", "narrow"], ["same"]),
    ]
    nodes = [flat, *work, *others]
    copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del large.graph.node[:]
    large.graph.node.extend(copied)
    return [network("large", model=large), network("small", shape=(64,), weight=half)], x, y


def serve(bundle: Bundle, x: np.ndarray, **options) -> tuple[list, list[int]]:
    """Answers of a running gateway, and how often each worker ran."""

    async def run():
        gateway = Gateway(bundle, GatewayOptions(inline_ms=0, patience=0, **options))
        await gateway.start()
        answers = [(await gateway.infer(np.ascontiguousarray(one[None]))).answer for one in x]
        runs = list(gateway.counters.worker_runs)
        await gateway.stop()
        return answers, runs

    return asyncio.run(run())


def test_a_served_cascade_asks_the_second_file_only_where_the_first_is_not_sure(files, tmp_path) -> None:
    paths, x, y = files
    bundle = sensai_serve.bundle(paths, LABELS, data=(x, y), cascade=True, loss=1.0, mean=0, std=1).save(tmp_path / "b")
    merge = bundle.manifest.merge
    assert (merge.wait, merge.wave) == ("confident", (1,))
    assert bundle.manifest.costs[0] > bundle.manifest.costs[1]
    assert merge.confident is not None
    cheap = merge.confident.order[0]
    answers, runs = serve(bundle, x[:200])
    asked = [answer.arrived for answer in answers]
    assert {(cheap,), (0, 1)} == set(asked)
    assert all(answer.decided_early == (len(answer.arrived) == 1) for answer in answers)
    assert not all(answer.exact for answer in answers)
    share = merge.confident.stopped[0]
    assert asked.count((cheap,)) / 200 == pytest.approx(share, abs=0.12)
    assert runs[1 - cheap] == asked.count((0, 1))
    best = max(bundle.manifest.accuracy["members"])
    right = np.mean([answer.class_id[0] == truth for answer, truth in zip(answers, y, strict=False)])
    assert right > best - 0.05
    assert bundle.manifest.accuracy["cascade"] >= best - 0.01  # on inputs that the thresholds were not fitted to
    local = sensai_serve.load(bundle)
    for answer, one in itertools.islice(zip(answers, x, strict=False), 20):
        assert local.predict_tensor(one[None], wait="confident").class_id == answer.class_id
    waits, _ = serve(bundle, x[:5], wait="all")
    assert all(answer.arrived == (0, 1) for answer in waits)


def test_where_the_cheap_file_fails_the_next_one_answers(files, tmp_path) -> None:
    paths, x, y = files
    bundle = sensai_serve.bundle(paths, LABELS, data=(x, y), cascade=True, mean=0, std=1).save(tmp_path / "b")
    assert bundle.manifest.merge.confident is not None
    cheap = bundle.manifest.merge.confident.order[0]
    answers, _ = serve(bundle, x[:3], faults=f"{cheap}:drop=1,after=8")
    assert [answer.arrived for answer in answers] == [(1 - cheap,)] * 3


def test_what_is_said_of_a_cascade(files, tmp_path, capsys) -> None:
    paths, x, y = files
    sensai_serve.bundle(paths, LABELS, data=(x, y), cascade=True, mean=0, std=1).save(tmp_path / "b")
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "b"), "--devices", "cpu:0,cpu:1"])
    out = " ".join(capsys.readouterr().out.split())
    assert "requests wait for confident where neither they nor the server say otherwise" in out
    assert "confident asks in waves: " in out
    assert "+" not in out.partition("confident asks in waves: ")[2].partition("test:")[0]  # one after the other
    assert "of the time of the most expensive file is what an answer takes then" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a", "b"], "a cascade is fitted on labelled data, and there is none, expected --data"),
        (["a", "--data", "npz:data.npz"], "a cascade of one file is none"),
        (["a", "b=cat,-,-", "--data", "npz:data.npz"], "a cascade asks files for all classes"),
        (["a", "b", "--replicas", "2"], "a cascade asks one worker after the other"),
        (["a", "b", "--loss", "-1"], "loss is -1.0, expected 0 to 100"),
    ],
)
def test_cascades_that_make_no_sense(network, tmp_path, monkeypatch, capsys, arguments, said) -> None:
    monkeypatch.chdir(tmp_path)
    network("a")
    network("b")
    np.savez("data.npz", x=np.random.default_rng(0).normal(size=(30, 4)), y=np.arange(30) % 3, labels=LABELS)
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    files = [f"{word[0]}.onnx{word[1:]}" if word[0] in "ab" else word for word in arguments]
    with pytest.raises(SystemExit) as ended:
        main(["bundle", *files, "--labels", "labels.txt", "--cascade", "--out", "bundle", "--quiet"])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
