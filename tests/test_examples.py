"""The bundle that comes with the repository is whole and gives the answers that it promises."""

from pathlib import Path

import numpy as np

import sensai_serve
from sensai_serve.bundle import Bundle

CIFAR10 = Path(__file__).parents[1] / "examples/cifar10"


def test_the_example_answers_its_golden_samples() -> None:
    bundle = Bundle.open(CIFAR10)
    golden = bundle.golden()
    answer = sensai_serve.load(CIFAR10).predict_tensor(golden.inputs)
    golden.check(answer.scores, answer.class_id)
    assert bundle.assignment.offsets == (0, 1, 3)
    assert (CIFAR10 / "LICENSE-weights").is_file()


def test_the_example_says_what_it_is_worth() -> None:
    bundle = Bundle.open(CIFAR10)
    with np.load(CIFAR10 / "evaluation.npz") as kept:
        right = (kept["class_id"] == kept["label"]).mean()
        assert len(kept["label"]) == bundle.manifest.accuracy["test_inputs"] == 10_000
    assert abs(right - bundle.manifest.accuracy["test"]) < 1e-4
