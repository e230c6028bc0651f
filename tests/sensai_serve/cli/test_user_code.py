"""A user's own modules, named on the command line: found after ours, in child processes too, and blamed by line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sensai_serve.cli.main import main

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-P", "-c", "from sensai_serve.cli.main import main; main()"]
"""The `sensai` script: its own directory is first on the path, not the current one."""
MODULE = '''
"""A user's network and data."""
import numpy as np
import torch


class Net(torch.nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, n_classes))

    def forward(self, x):
        return self.layers(x)


def data():
    random = np.random.default_rng(0)
    y = np.arange(90) % 3
    return {"x": random.normal(size=(90, 4)).astype(np.float32) + y[:, None], "y": y}


def no_data():
    raise KeyError("the file of readings")


def no_net(n_classes):
    raise RuntimeError("not enough\\nmoney")


def importance(statistics, thresholds):
    return statistics.colour
'''
QUICK = [
    "--recover-images",
    "0",
    "--images",
    "64",
    "--batch",
    "32",
    "--reconstruct-images",
    "0",
    "--profile-images",
    "8",
    "--macs",
    "0.5",
    "--quiet",
]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of a user's, with a network, its weights, and a package that is called as one of ours."""
    folder = tmp_path / "own"
    (folder / "serving").mkdir(parents=True)
    (folder / "serving/__init__.py").write_text("raise AssertionError('a package of the user is imported')\n")
    (folder / "my_net.py").write_text(MODULE)
    layers = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    torch.save({f"layers.{name}": value for name, value in layers.state_dict().items()}, folder / "net.pt")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    sys.modules.pop("my_net", None)


def prune(*arguments: str) -> list[str]:
    given = {"--data": "my_net:data", "--model": "my_net:Net", "--weights": "net.pt"}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    return ["prune", *(part for option in given.items() for part in option), *QUICK]


def run(arguments: list[str], path: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, env=environment)


def test_modules_of_ones_own_directory_are_found_and_do_not_hide_ours(own: Path) -> None:
    done = run([*prune("--data", "my_net:no_data"), "--dry-run"], str(ROOT))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{own}/my_net.py:23: KeyError: 'the file of readings'" in done.stderr


def test_child_processes_find_them_too(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(prune("--out", "run", "--jobs", "2", "--assignment", "grouped", "--groups", "1"))
    assert "run: 1 subnets" in capsys.readouterr().out


def test_a_package_that_hides_ours_is_said_in_one_line(own: Path) -> None:
    done = run(["serve", "nothing"], os.pathsep.join([str(own), str(ROOT)]))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert f"{own / 'serving'} hides the package 'serving' of sensai-serve" in done.stderr
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    module = [sys.executable, "-m", "sensai_serve", "serve", "nothing"]
    done = subprocess.run(module, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "hides the package 'serving'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--model", "nowhere:Net", "--data", "npz:nothing.npz"), "nowhere:Net: cannot import nowhere"),
        (("--model", "my_net:Nut", "--data", "npz:nothing.npz"), "the module my_net has no 'Nut'"),
        (("--criterion", "my_net:nothing", "--data", "npz:nothing.npz"), "the module my_net has no 'nothing'"),
        (("--head", "nothing", "--data", "npz:nothing.npz"), "heads: nothing is called 'nothing'"),
        (("--model", "serving.net:Net"), "serving is a package of sensai-serve, expected another name"),
        (("--data", "my_net:no_data"), "{own}/my_net.py:23: KeyError: 'the file of readings'; --traceback prints"),
        (("--model", "my_net:no_net"), "{own}/my_net.py:27: RuntimeError: not enough money; --traceback prints"),
        (("--criterion", "my_net:importance"), "{own}/my_net.py:31: AttributeError:"),
    ],
)
def test_what_is_wrong_with_a_module_of_ones_own_is_one_line(
    own: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*prune(*arguments), "--dry-run"])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.count("\n") == 1
    assert expected.format(own=own) in said


def test_the_rest_is_printed_where_it_is_asked_for(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*prune("--data", "my_net:no_data"), "--dry-run", "--traceback"])
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert 'raise KeyError("the file of readings")' in said
