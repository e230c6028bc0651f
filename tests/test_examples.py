"""The examples that come with the package are found by name, whole, and give the answers that they promise."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sensai_serve
from sensai_serve import examples
from sensai_serve.bundles import Bundle
from sensai_serve.cli.main import main
from sensai_serve.errors import BundleError, DataError

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


def test_an_example_is_named_wherever_a_bundle_is_taken() -> None:
    assert Bundle.open("example:cifar10").path.resolve() == CIFAR10.resolve()
    assert examples.bundle_path("bundles/digits") == Path("bundles/digits")
    with pytest.raises(BundleError, match=r"example:nothing is no bundle .*, expected example:cifar10$"):
        sensai_serve.load("example:nothing")
    with pytest.raises(BundleError, match=r"expected example:cifar10$"):
        Bundle.open("example:ship.png")


@pytest.mark.parametrize("label", ["airplane", "automobile", "ship", "truck"])
def test_the_pictures_are_what_they_are_called(label: str) -> None:
    prediction = sensai_serve.load("example:cifar10").predict(f"example:{label}.png")
    assert (prediction.label, prediction.elected) == (label, True)


def test_predict_takes_examples_and_lists_them_where_a_name_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["predict", "--json", "example:cifar10", "example:ship.png", "example:truck.png"])
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ended.value.code == 0
    assert [(a["input"], a["label"]) for a in answers] == [("example:ship.png", "ship"), ("example:truck.png", "truck")]
    with pytest.raises(SystemExit) as ended:
        main(["predict", "example:cifar10", "example:boat.png"])
    assert ended.value.code == 2
    assert "expected example:airplane.png or example:automobile.png" in capsys.readouterr().err
    with pytest.raises(DataError, match="no picture"):
        sensai_serve.load("example:cifar10").predict("example:boat.png")


def test_a_server_has_loaded_what_reads_pictures_before_the_first_one_comes() -> None:
    code = (
        "import asyncio, sys\n"
        "from sensai_serve.bundles import Bundle\n"
        "from serving.engine.gateway import Gateway\n"
        "from serving.engine.options import GatewayOptions\n"
        "gateway = Gateway(Bundle.open('example:cifar10'), GatewayOptions())\n"
        "async def main():\n"
        "    await gateway.start()\n"
        "    print({'PIL.PngImagePlugin', 'PIL.JpegImagePlugin', 'PIL.ImageOps'} <= set(sys.modules))\n"
        "    await gateway.stop()\n"
        "asyncio.run(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


def test_an_example_becomes_triton_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", "example:cifar10", "--triton", str(tmp_path)])
    assert ended.value.code == 0, capsys.readouterr().err
    assert len(list(tmp_path.glob("cifar10-*"))) == 10
