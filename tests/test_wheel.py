"""The wheel: everything that runs, nothing that only tests, and it works from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from sensai_serve import __version__


def test_it_holds_every_package_and_no_tests(wheel: Path) -> None:
    assert wheel.name == f"sensai_serve-{__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {
        "sensai_serve", "pruning", "export", "serving", "benchmarks", f"sensai_serve-{__version__}.dist-info",
    }  # fmt: skip
    assert not [
        name for name in names if "test" in Path(name).name.partition("_")[0] or name.startswith("benchmarks/results")
    ]
    assert "sensai_serve/py.typed" in names
    assert "serving/transports/http/console/assets/console.html" in names


def test_it_brings_the_examples_and_stays_small(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for file in (
        "manifest.json",
        "reference.onnx",
        "monolith.onnx",
        "golden.npz",
        "LICENSE-weights",
        "subnets/09.onnx",
    ):
        assert f"sensai_serve/examples/cifar10/{file}" in names
    assert "sensai_serve/examples/pictures/ship.png" in names
    assert wheel.stat().st_size < 6 * 2**20


def test_it_works_from_another_folder(wheel: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import pathlib, sensai_serve, numpy; "
        "assert pathlib.Path(sensai_serve.__file__).is_relative_to(pathlib.Path('site').resolve()); "
        f"print(sensai_serve.load({str(tiny_bundle)!r}).predict(numpy.zeros((3, 8, 8))).label)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    example = ["-m", "sensai_serve", "predict", "example:cifar10", "example:ship.png"]
    commands = {"class-": ["-c", code], "workers": ["-m", "sensai_serve", "inspect", str(tiny_bundle)], "ship": example}
    for expected, arguments in commands.items():
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
