"""A plugin of each kind in a folder of its own, outside the project, seen at work through the command line.

Transports are in ``tests/serving/transports``; benchmarks, peers and straggler cases in ``tests/benchmarks``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

import sensai_serve
from pruning.run import Run
from sensai_serve.bundles import Bundle
from sensai_serve.cli.main import main

ROOT = Path(__file__).parents[1]
PLUGINS = '''
"""Plugins of a newcomer."""

import numpy as np
import torch
import torch.nn.functional as F

from pruning.heads.sigmoid import Sigmoid


class Net(torch.nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.hidden, self.out = torch.nn.Linear(5, 16), torch.nn.Linear(16, n_classes)

    def forward(self, x):
        return self.out(F.relu(self.hidden(x)))


def readings():
    random = np.random.default_rng(0)
    y = np.arange(160) % 4
    x = random.normal(size=(160, 5)).astype(np.float32) + 2 * np.eye(4, 5)[y]
    return {"x": x.astype(np.float32), "y": y, "labels": ["north", "east", "south", "west"]}


def busy(evidence, thresholds):
    """A criterion of activations."""
    return evidence.over_activations(lambda statistics: 1 - statistics.zeros)


def heavy(evidence, thresholds):
    """A criterion of weights."""
    return evidence.over_weights(lambda weights: np.abs(weights).max(axis=1), roles=["producer"])


def opposite(classes, n_groups, seed):
    """A grouping."""
    return [list(range(at, classes.n_classes, n_groups)) for at in range(n_groups)]


class Steep(Sigmoid):
    """A head."""

    def probabilities(self, logits):
        return torch.sigmoid(2 * logits)

    def loss(self, logits, targets):
        return super().loss(2 * logits, targets)

    def log_odds(self, logits):
        return 2 * logits


steep = Steep()
'''
SERVED = '''
"""Plugins of a newcomer that need no torch."""

import asyncio

from sensai_serve.merge.rules import Verdict
from serving.runtime.devices import Device
from serving.runtime.session import Session


class Largest:
    """A merge rule: the class of the largest score of all copies; decided when every worker has been heard."""

    def __init__(self, layout):
        n_classes = len(layout.copies)
        self.layout, self.awaited = layout, set(range(len(layout.places)))
        self.scores, self.votes, self.copies = [0.0] * n_classes, [0] * n_classes, [0] * n_classes

    def add(self, worker, scores):
        self.awaited.discard(worker)
        for (c, _), score in zip(self.layout.places[worker], scores):
            self.scores[c] = max(self.scores[c], score)
            self.votes[c] += score >= self.layout.threshold
            self.copies[c] += 1

    def erase(self, worker):
        self.awaited.discard(worker)

    def decided(self):
        return not self.awaited

    def certain(self):
        return sum(self.copies) == sum(self.layout.copies)

    def verdict(self):
        order = sorted((c for c, n in enumerate(self.copies) if n), key=lambda c: -self.scores[c])
        if not order:
            return Verdict(self.scores, self.votes, self.copies, 0.0, -1, False)
        best, rest = order[0], order[1:]
        margin = self.scores[best] - (self.scores[rest[0]] if rest else 0.0)
        elected = 2 * self.votes[best] > self.copies[best]
        return Verdict(self.scores, self.votes, self.copies, margin, best, elected)


class Plain:
    """A backend: one worker after the other, as soon as the event loop has time."""

    def __init__(self, plan):
        self.plan, self.loop = plan, asyncio.get_running_loop()

    def start(self):
        device = Device("cpu")
        self.sessions = {w: Session.of_worker(self.plan.bundle, w, device) for w in self.plan.workers}
        for worker in self.plan.workers:
            self.plan.on_up(worker)

    def submit(self, task, workers):
        for worker in workers:
            self.loop.call_soon(self.run, task, worker)

    def run(self, task, worker):
        if not task.closed:
            task.deliver(worker, self.sessions[worker].run(task.inputs), 0.001)

    def stop(self):
        pass
'''
COMMAND = [sys.executable, "-P", "-c", "from sensai_serve.cli.main import main; main()"]
"""The `sensai` script, which does not have the current directory on its path."""
QUICK = "--recover-images 0 --images 320 --batch 32 --reconstruct-images 0 --profile-images 8 --macs 0.5 --quiet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A newcomer's folder: plugins, weights of a network whose later channels weigh more, an input."""
    path = tmp_path_factory.mktemp("newcomer")
    (path / "mine.py").write_text(PLUGINS)
    (path / "served.py").write_text(SERVED)
    random = torch.Generator().manual_seed(0)
    hidden = torch.rand(16, 5, generator=random) + torch.arange(16)[:, None]
    out = torch.rand(4, 16, generator=random) - 0.5
    state = {"hidden.weight": hidden, "hidden.bias": torch.zeros(16), "out.weight": out, "out.bias": torch.zeros(4)}
    torch.save(state, path / "net.pt")
    np.save(path / "one.npy", np.array([[0, 0, 9, 0, 0]], np.float32))
    return path


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("mine", "served"):  # another test's modules may be called so too
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


def sensai(capsys: pytest.CaptureFixture[str], command: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    return out


@pytest.fixture
def bundle(here: Path, capsys: pytest.CaptureFixture[str]) -> Bundle:
    """Made once by the commands, with every offline plugin of the newcomer."""
    if not (here / "bundle").exists():
        named = "--data mine:readings --model mine:Net --criterion mine:busy --grouping mine:opposite --head mine:steep"
        code = "--assignment cyclic --groups 2 --redundancy 2 --merge served:Largest"
        out = sensai(capsys, f"prune {named} {code} --weights net.pt --out run {QUICK}")
        assert "run: 2 subnets" in out
        sensai(capsys, "export run --out bundle --pad-channels 1 --quiet")
    return Bundle.open(here / "bundle")


def test_data_model_criterion_grouping_head_and_merge_rule(bundle: Bundle, here: Path, capsys) -> None:
    manifest = bundle.manifest
    assert manifest.labels == ("north", "east", "south", "west")
    assert manifest.symbols == ((0, 2), (1, 3))
    assert [subnet.head for subnet in manifest.subnets] == ["mine:steep"] * 2
    assert manifest.merge.rule == "served:Largest"
    shown = sensai(capsys, "predict bundle one.npy --merge-rule served:Largest --json")
    assert '"label": ' in shown


def test_a_criterion_of_weights(here: Path, capsys) -> None:
    named = "--data mine:readings --model mine:Net --criterion mine:heavy --weights net.pt"
    sensai(capsys, f"prune {named} --out weighed {QUICK}")
    run = Run.open(here / "weighed")
    kept = [run.network(run.folder(worker)).cut["hidden"] for worker in range(4)]
    assert kept == [tuple(range(12, 16))] * 4


def test_a_bundle_whose_rule_was_not_allowed_is_refused(bundle: Bundle, here: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "predict", "bundle", "one.npy"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "'served:Largest' is code that was not allowed here" in done.stderr


def test_a_backend_and_the_merge_rule_in_the_server(bundle: Bundle, here: Path) -> None:
    arguments = ["serve", "bundle", "--backend", "served:Plain", "--merge-rule", "served:Largest", "--device", "cpu"]
    command = [*COMMAND, *arguments, "--http", "127.0.0.1:0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[1]
            expected = sensai_serve.load(bundle)  # allowed in this process by the run that named it
            for raw in np.random.default_rng(1).normal(size=(5, 5)).astype(np.float32):
                answer = httpx.post(f"{url}/v1/predict", json={"inputs": raw.tolist()}).json()
                assert answer["label"] == expected.predict(raw).label
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0
        finally:
            server.kill()
