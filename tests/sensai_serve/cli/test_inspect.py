"""``sensai inspect`` and the command's frame: what is printed, and what is refused in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sensai_serve import __version__
from sensai_serve.assignment import binary, full
from sensai_serve.byte_sizes import show_bytes
from sensai_serve.cli.main import main


def sensai(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sensai_serve", *map(str, args)], capture_output=True, text=True, timeout=60, check=False
    )


def run(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(list(map(str, args)))
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


def test_inspect_shows_workers_guarantees_and_placement(tiny_bundle: Path, capsys) -> None:
    code, out, _ = run(capsys, "inspect", tiny_bundle, "--devices", "cpu:0,cpu:1")
    assert code == 0
    assert "10 classes, 10 workers, cyclic assignment with offsets [0, 1, 3]" in out
    assert "class-9, class-0, class-2" in out.replace("\n", " ") or "class-9," in out
    assert "redundancy 3: tolerates the loss of any 2 of 10 workers: every class still has a copy" in " ".join(
        out.split()
    )
    assert "placement tolerates the loss of any 1 of 2 devices" in " ".join(out.split())
    assert "3 copies do not fit on 2 devices" in " ".join(out.split())
    assert "every file is as it was written" in out
    assert "every worker covers every class" not in " ".join(out.split())


def test_inspect_speaks_json(tiny_bundle: Path, capsys) -> None:
    code, out, _ = run(capsys, "inspect", tiny_bundle, "--json", "--devices", "cuda:0,cuda:1,cuda:2")
    raw = json.loads(out)
    assert code == 0
    assert raw["guarantees"]["losses_covered"] == 2
    assert len(raw["placement"]["device_of"]) == 10
    assert raw["placement"]["devices"] == ["cuda:0", "cuda:1", "cuda:2"]  # planned for, not asked for


def test_inspect_says_how_much_stops_early_and_the_waves(make_bundle, capsys) -> None:
    bundle = make_bundle(assignment=full(4, 3), rule="mean", sure=(0.5, 0.25))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["merge"]["confident"] |= {"inputs": 5000, "order": [2, 0, 1], "stopped": [0.714, 0.0]}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    _, out, _ = run(capsys, "inspect", bundle)
    said = " ".join(out.split())
    assert "confident: of 5,000 inputs 71.4% with 1 copy of every class are sure; wherever" in said
    assert "at least 99.9% of them get the class that all copies give" in said
    assert "in the order 2, 0, 1" in said
    assert "every worker covers every class: an ensemble of 3 networks for the whole task" in said
    _, out, _ = run(capsys, "inspect", bundle, "--devices", "cpu:0,cpu:1")
    waves = json.loads(run(capsys, "inspect", bundle, "--json", "--devices", "cpu:0,cpu:1")[1])["waves"]
    assert [len(wave) for wave in waves] == [2, 1]
    assert f"confident asks in waves: {waves[0][0]}+{waves[0][1]}, {waves[1][0]}" in " ".join(out.split())


def test_inspect_says_how_much_of_budgets_is_used(tiny_bundle: Path, capsys) -> None:
    devices = ("--devices", "cpu:0=1GiB,cuda:0,cpu:1=500MB")
    _, out, _ = run(capsys, "inspect", tiny_bundle, *devices, "--batch", "1")
    raw = json.loads(run(capsys, "inspect", tiny_bundle, *devices, "--batch", "1", "--json")[1])["placement"]
    used = show_bytes(raw["used"][0])
    assert f"memory: cpu:0 {used} of 1GiB, cpu:1 {show_bytes(raw['used'][2])} of 500MB" in " ".join(out.split())
    assert raw["budgets"] == [2**30, None, 500_000_000]
    larger = json.loads(run(capsys, "inspect", tiny_bundle, *devices, "--json")[1])["placement"]
    assert larger["batch"] == 64
    assert larger["used"][0] > raw["used"][0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["inspect", "nowhere"], "nowhere is not a bundle: no such directory"),
        (["inspect", "BUNDLE", "--devices", "gpu"], "device is 'gpu', expected cpu, cpu:CORE or cuda:CARD"),
        (["inspect", "BUNDLE", "--devices", "cpu:0,cpu:0"], "expected different ones"),
        (["inspect", "BUNDLE", "--devices", "cpu:0=1GiB,cpu:0"], "expected different ones"),
        (["inspect", "BUNDLE", "--devices", "cuda:0="], "device is 'cuda:0=': size is ''"),
        (["inspect", "BUNDLE", "--devices", "cuda:0=1KiB,cpu=1KiB"], "no placement fits: workers 0-9 take "),
    ],
)
def test_errors_are_one_line_and_exit_code_2(args: list[str], message: str, tiny_bundle: Path, capsys) -> None:
    code, out, err = run(capsys, *(str(tiny_bundle) if a == "BUNDLE" else a for a in args))
    assert (code, out) == (2, "")
    assert err.startswith("sensai: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_spoilt_bundle_is_refused(make_bundle, capsys) -> None:
    bundle = make_bundle()
    (bundle / "subnets/01.onnx").write_bytes(b"")
    code, _, err = run(capsys, "inspect", bundle)
    assert code == 2
    assert "subnets/01.onnx has SHA-256" in err


def test_unknown_options_and_commands_exit_with_2() -> None:
    for args in (["inspect"], ["inspect", "--nonsense"], ["fly"]):
        done = sensai(*args)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_the_version_is_the_packages() -> None:
    assert sensai("--version").stdout == f"sensai-serve {__version__}\n"


def test_every_figure_of_accuracy_is_explained(tiny_bundle: Path, tmp_path: Path, capsys) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["accuracy"] = {"test": 0.9, "elected": 0.75, "validation_fp32": 0.5, "test_inputs": 40}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    code, out, _ = run(capsys, "inspect", bundle)
    assert code == 0
    said = " ".join(out.split())
    assert "test: 90.00% of the test part right" in said
    assert "elected: 75.00% of the answers are a class that more than half of its copies vote for" in said
    assert "validation fp32: 50.00% right on the validation part, which choices are made on, with subnets in" in said
    assert "test inputs: 40" in said


def test_no_redundancy_tolerates_no_loss(make_bundle, capsys) -> None:
    _, out, _ = run(capsys, "inspect", make_bundle(n_classes=3, assignment=binary(3)))
    assert "redundancy 1: tolerates no lost worker\n" in out
