"""``sensai compare``: equal work, figures that the files bear out, killed and gone on, wrong input in one line."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from benchmarks.compare.measure import Candidate, Timed, frontier, gain
from pruning import data, models
from pruning.comparison.points import SUMMED, points, sweep_for
from pruning.recipe import Recipe
from pruning.run import Run
from pruning.training.reference import train
from sensai_serve import load
from sensai_serve.bundles import Bundle
from sensai_serve.cli.main import main
from sensai_serve.errors import InputError
from sensai_serve.merge import merge
from sensai_serve.preprocess import normalise

OPTIONS = ("--data", "wine", "--model", "mlp", "--macs", "0.5", "--passes", "900", "--batch", "32", "--threads", "1")
MEASURED = ("--requests", "20", "--rounds", "4")
MADE = ["monolith-0.5", "single-0.5-total", "grouped-0.5-total", "full-0.5-total"]


@pytest.fixture(scope="module")
def wine(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("wine") / "wine.safetensors"
    save_file(train("wine", "mlp", epochs=20, batch=32, rate=0.05).model.state_dict(), path)
    return path


@pytest.fixture
def compare(capsys):
    def run(*args: object) -> tuple[int, str, str]:
        before = torch.get_num_threads()
        with pytest.raises(SystemExit) as stop:
            main(["compare", *map(str, args)])
        torch.set_num_threads(before)
        return int(stop.value.code or 0), *capsys.readouterr()

    return run


def write_linear(path: Path, weight: np.ndarray) -> None:
    """A network of somebody else's: its own names, logits for scores."""
    n, outputs = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["readings", "weight"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("readings", TensorProto.FLOAT, ["batch", n])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", outputs])],
        [numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.soak  # a minute of torch
def test_killed_it_goes_on_and_its_figures_are_those_of_its_files(compare, wine, tmp_path):
    """One comparison from a killed start to its report, for it takes seconds."""
    out, dataset = tmp_path / "out", data.load("wine")
    weight = np.random.default_rng(0).normal(size=(13, 3)).astype(np.float32)
    write_linear(tmp_path / "foreign.onnx", weight)
    given = ("--point", f"same=mlp:{wine}", "--point", f"foreign={tmp_path / 'foreign.onnx'}?mean=0&std=1")
    uneven = ("--groups", "2", "--uneven")
    arguments = (*OPTIONS, *MEASURED, *given, *uneven, "--budget", "total", "--weights", wine, "--out", out)
    command = [sys.executable, "-m", "sensai_serve", "compare", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("single-0.5-total: done"):
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    before = stamps(out / "points/monolith-0.5") | stamps(out / "points/single-0.5-total")
    assert before
    assert not list(out.rglob("result.json"))  # nothing was held against the test part yet

    code, printed, err = compare(*arguments, "--quiet")
    assert code == 0, err
    assert "Does class parallelism earn its place?" in printed
    assert before.items() <= stamps(out).items()
    found = {one["name"]: one for one in json.loads((out / "result.json").read_text())["results"]}
    assert list(found) == ["reference", "reference-int8", "same", "foreign", *MADE]
    quantised = onnx.load(out / "points/reference-int8/network.onnx")
    assert "QuantizeLinear" in {node.op_type for node in quantised.graph.node}
    assert found["reference-int8"]["test"] == pytest.approx(found["reference"]["test"], abs=0.1)
    for name in MADE:
        bundle = Bundle.open(out / "points" / name / "bundle")
        classifier = load(bundle)
        answers = classifier.predict_tensor(normalise(dataset.x_test, dataset.spec))
        assert found[name]["test"] == (answers.class_id == dataset.y_test).mean()
        assert found[name]["macs"] == [subnet.macs for subnet in bundle.manifest.subnets]
        assert found[name]["networks"] == len(found[name]["macs"]) == bundle.assignment.n_workers
        assert found[name]["work"] > 0
        if bundle.assignment.n_workers == 1:
            assert found[name]["one_lost"] is None
            assert found[name]["lost_mean"] == []
        else:
            scores = classifier.scores(normalise(dataset.x_test, dataset.spec))
            for key, count in (("one_lost", 1), ("two_lost", 2)):
                left = [
                    merge(bundle.merge_plan, [None if w in lost else s for w, s in enumerate(scores)])
                    for lost in itertools.combinations(range(len(scores)), count)
                ]
                each = [np.mean(one.class_id == dataset.y_test) for one in left]
                assert found[name][key] == (min(each) if count < len(scores) else None)
                if count < len(scores):
                    assert found[name]["lost_mean"][count] == pytest.approx(np.mean(each))
        recipe = Run.open(out / "points" / name / "run").recipe
        assert found[name]["passes"] == recipe.recover_images + bundle.assignment.n_workers * recipe.images
    sure = found["full-0.5-total"]["confident"]
    classifier = load(Bundle.open(out / "points/full-0.5-total/bundle"))
    answers = [
        classifier.predict_tensor(normalise(one[None], dataset.spec), wait="confident") for one in dataset.x_test
    ]
    labels = np.concatenate([answer.class_id for answer in answers])
    assert sure["test"] == np.mean(labels == dataset.y_test)
    assert sure["asked"] == pytest.approx(np.mean([len(answer.arrived) for answer in answers]))
    assert found["same"]["test"] == found["reference"]["test"] > 0.9
    labels = (dataset.x_test.astype(np.float32) @ weight).argmax(axis=1)  # of unnormalised readings, as it was asked
    assert found["foreign"]["test"] == (labels == dataset.y_test).mean()

    once = stamps(out / "points")
    code, _, err = compare(*arguments, "--quiet")
    assert code == 0, err
    assert stamps(out / "points") == once
    page = (out / "report.html").read_text()
    assert "<title>sensai compare: wine</title>" in page
    assert str(tmp_path) not in page
    assert {path.stem for path in out.glob("*.png")} == {"range"}

    code, _, err = compare(*arguments, "--rate", "0.5", "--quiet")
    assert code == 2
    assert "is a run of another recipe (rate is None there, 0.5 here)" in err
    code, _, err = compare(*arguments[:-2], "--out", out, "--quiet", "--point", f"again=mlp:{wine}", "--point",
                           f"again=mlp:{wine}")  # fmt: skip
    assert code == 2
    assert "two points have the same name" in err


@pytest.mark.parametrize(
    ("n_classes", "options"),
    [
        (3, {}),
        (10, {}),
        (10, {"recoveries": 5, "joint_share": 0.125}),
        (10, {"joint_share": 0.25}),  # nothing is left for networks of their own
        (100, {"groups": 4, "redundancies": ["1", "2", "full"]}),
    ],
)
def test_the_work_is_equal(n_classes, options):
    base = Recipe("digits", "cnn", batch=32)
    sweep = sweep_for(n_classes, (0.1, 0.3), 20_000, **options)
    made = points(base, n_classes, sweep, 5_000)
    assert {one.amount for one in made} == {0.1, 0.3}
    assert len({one.name for one in made}) == len({(one.series, one.amount, one.passes, one.budget) for one in made})
    for one in made:
        recipe = one.recipe
        assert one.passes == recipe.recoveries * recipe.recover_images + one.workers * (
            recipe.images + recipe.joint_images
        )
        if one.series == SUMMED:
            assert one.passes in {of.passes for of in made if of.workers > 1 and of.budget == "per-network"}
        elif one.budget == "per-network" or one.workers == 1:
            assert recipe.recover_images + recipe.images + recipe.joint_images == 20_000
        else:
            assert 20_000 - 2 * one.workers - recipe.recoveries < one.passes <= 20_000
    assert {one.recipe.views for one in made} == {8}
    recoveries = {(o.amount, o.recipe.recover_images, o.recipe.recover_rate) for o in made if o.workers > 1}
    assert len(recoveries) == (4 if sweep.recoveries > 1 else 2)


def test_the_range_has_every_redundancy_apart_and_joint_of_one_origin_and_of_several():
    sweep = sweep_for(10, (0.1,), 20_000, budget="per-network", recoveries=10, joint_share=0.1)
    made = points(Recipe("digits", "cnn"), 10, sweep, 5_000)
    assert [one.series for one in made] == [
        "monolith", *["monolith, all passes"] * 2, "r = 1", "grouped",
        *(f"{r}{how}" for r in ("r = 3", "r = 5", "full, r = 10")
          for how in ("", ", joint", ", 10 origins", ", 10 origins, joint")),
    ]  # fmt: skip
    full = next(one for one in made if one.series == "full, r = 10, 10 origins, joint").recipe
    assert (full.assignment, full.redundancy, full.recoveries, full.head) == ("full", 10, 10, "softmax")
    assert (full.recover_images, full.images, full.joint_images) == (15_000, 3_000, 2_000)


@pytest.mark.parametrize(
    ("n_classes", "workers", "groups"), [(3, 3, 3), (10, 10, 5), (100, 10, 5), (12, 6, 4), (43, 43, 43)]
)
def test_defaults_divide_the_classes(n_classes, workers, groups):
    sweep = sweep_for(n_classes, (0.1,), 20_000)
    assert (sweep.workers, sweep.groups) == (workers, groups)


def test_what_a_single_network_of_that_latency_reaches():
    def timed(name: str, accuracy: float, *microseconds: float) -> Timed:
        entry = Candidate(name, "s", "", "", accuracy, 0.0, (0,), (0,), 0, [Path()] * len(microseconds))
        return Timed(entry, tuple([np.full(3, us * 1e-6)] * 3 for us in microseconds))

    single = [timed("a", 0.8, 100), timed("worse", 0.7, 150), timed("b", 0.9, 200)]
    x, y = frontier(single)
    np.testing.assert_allclose(x, [100e-6, 200e-6])
    np.testing.assert_allclose(y, [0.8, 0.9])
    two = timed("two", 0.88, 50, 150)
    assert two.latency.p50 == pytest.approx(150e-6)
    assert two.work == pytest.approx(200e-6)
    assert two.faster_than(single[2]).value == pytest.approx(200 / 150)
    assert gain(two, [*single, two]) == pytest.approx(0.88 - 0.85)
    assert gain(timed("slow", 0.95, 400, 1), single) == pytest.approx(0.05)
    assert gain(timed("alike", 0.75, 95, 1), single) == pytest.approx(-0.05)
    assert gain(timed("fast", 0.5, 20, 10), single) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--macs": "0.1,x"}, "--macs is '0.1,x', expected fractions"),
        ({"--macs": "1.5"}, "expected fractions between 0 and 1"),
        ({"--macs": "0.1,0.1"}, "expected each once"),
        ({"--macs": "0.0001"}, "smallest network that can be reached"),
        ({"--budget": "mine"}, "budget is 'mine', expected per-network, total or both"),
        ({"--share": "1"}, "share is 1.0, expected at least 0 and less than 1"),
        ({"--joint-share": "0.5"}, "share is 0.75 and joint_share 0.5, expected at least 0 and together at most 1"),
        (
            {"--joint-share": "0.001"},
            "leaves 2 for each of 3 workers for the joint retraining, expected at least a batch",
        ),
        ({"--redundancy": "1,two"}, "redundancy is 'two', expected whole numbers and full"),
        ({"--redundancy": "0"}, "redundancy is [0], expected 1 to the number of workers, 3"),
        ({"--redundancy": "1,4"}, "redundancy is [1, 4], expected 1 to the number of workers, 3"),
        ({"--recoveries": "4"}, "recoveries is 4, expected 1 to the number of workers, 3"),
        ({"--merge": "plurality"}, "nothing is called 'plurality'"),
        ({"--passes": "100"}, "expected at least a batch"),
        ({"--workers": "4"}, "workers is 4, expected 2 to the number of classes, 3"),
        ({"--groups": "1"}, "groups is 1, expected 2 to"),
        ({"--groups": "2"}, "groups is 2: 3 classes do not divide"),
        ({"--weights": "nowhere"}, "'nowhere' is not there"),
        ({"--grouping": "magic"}, "nothing is called 'magic'"),
        ({"--point": "mlp"}, "--point is 'mlp', expected NAME=MODEL:WEIGHTS"),
        ({"--point": "../up=mlp:w"}, "expected NAME=MODEL:WEIGHTS"),
        ({"--point": "a=mlp:nowhere"}, "--point a: nowhere is not there"),
        ({"--point": "a=cnn:other.safetensors"}, "no network is called 'cnn'"),
        ({"--point": "a=mlp:other.safetensors"}, "does not fit the model"),
        ({"--point": "a=other.safetensors"}, "expected NAME=MODEL:WEIGHTS"),
        ({"--point": "a=four.onnx"}, "four.onnx is no network from FP32 [N, 13] to FP32 [N, 3]"),
        ({"--point": "a=four.onnx?mean=x"}, "mean or std does not fit"),
        ({"--point": "a=four.onnx?size=3"}, "unknown option 'size'"),
        ({"--point": "reference=mlp:w.safetensors"}, "two points have the same name"),
    ],
)
def test_a_wrong_comparison_is_one_line_and_leaves_nothing(compare, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    save_file(models.create("mlp", 3, (13,)).state_dict(), "w.safetensors")
    save_file(models.create("mlp", 4, (13,)).state_dict(), "other.safetensors")
    write_linear(Path("four.onnx"), np.ones((13, 4), np.float32))
    before = sorted(tmp_path.rglob("*"))
    options = dict(zip(OPTIONS[::2], OPTIONS[1::2], strict=True))
    options |= {"--weights": "w.safetensors", "--out": "out", "--passes": "2000"} | changes
    code, out, err = compare("--quiet", *(part for pair in options.items() for part in pair))
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_makes_nothing(compare, wine, tmp_path):
    code, out, err = compare(*OPTIONS, "--weights", wine, "--out", tmp_path / "out", "--dry-run")
    assert code == 0, err
    assert "full-0.5-total" in out
    # The monolith, the one of all passes, the shared recovery once, and each worker's own.
    assert f"{900 + 1350 + 675 + (3 + 3) * 225 + (3 + 3) * 75:,} image passes in all" in out
    assert not (tmp_path / "out").exists()


def test_too_few_passes_are_refused_before_any_work():
    with pytest.raises(InputError, match="leaves 12 for each of 10 workers"):
        points(Recipe("digits", "cnn"), 10, sweep_for(10, (0.1,), 1000, budget="total", share=0.875), 1_000)
