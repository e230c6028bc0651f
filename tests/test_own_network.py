"""A network and pictures of one's own: every command in a user's order, from the wheel alone, in an empty directory.

The network has what people build today: depthwise convolutions, squeeze-and-excite, branches that are concatenated.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

LABELS = ["disc", "ring", "square", "triangle", "cross", "bars"]
NETWORK = '''
"""The network of somebody who has read the README."""

import torch
from torch import nn


class Squeeze(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.less, self.more = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x):
        weights = torch.relu(self.less(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.more(weights))


def conv(inputs, outputs, size=3, stride=1, groups=1):
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class Separable(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.depthwise = conv(inputs, inputs, 3, stride, groups=inputs)
        self.squeeze = Squeeze(inputs)
        self.pointwise = conv(inputs, outputs, 1)

    def forward(self, x):
        return self.pointwise(self.squeeze(self.depthwise(x)))


class Net(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.stem = conv(1, 16, stride=2)
        self.narrow, self.wide = conv(16, 16, 1), conv(16, 16, 3)
        self.first, self.second = Separable(32, 32, 1), Separable(32, 64, 2)
        self.out = nn.Linear(64, n_classes)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([self.narrow(x), self.wide(x)], dim=1)
        x = x + self.first(x)
        return self.out(self.second(x).mean((2, 3)))
'''
SCRIPT = [sys.executable, "-P", "-c", "from sensai_serve.cli.main import main; main()"]
"""The `sensai` script."""


def shape(label: int, random: np.random.Generator) -> Image.Image:
    """A 24 x 24 picture of a shape somewhere, in some size and grey, on a noisy ground."""
    picture = Image.new("L", (24, 24), int(random.integers(0, 60)))
    draw, grey, r = ImageDraw.Draw(picture), int(random.integers(130, 256)), int(random.integers(5, 9))
    x, y = (int(random.integers(r + 1, 23 - r)) for _ in range(2))
    box = (x - r, y - r, x + r, y + r)
    if LABELS[label] == "disc":
        draw.ellipse(box, fill=grey)
    elif LABELS[label] == "ring":
        draw.ellipse(box, outline=grey, width=2)
    elif LABELS[label] == "square":
        draw.rectangle(box, fill=grey)
    elif LABELS[label] == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=grey)
    elif LABELS[label] == "cross":
        draw.line((x - r, y, x + r, y), fill=grey, width=3)
        draw.line((x, y - r, x, y + r), fill=grey, width=3)
    else:
        for dx in (-r, 0, r):
            draw.line((x + dx, y - r, x + dx, y + r), fill=grey, width=2)
    noisy = np.asarray(picture, np.float64) + random.normal(0, 12, (24, 24))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def write_data(folder: Path) -> None:
    """2,000 pictures in shapes.npz, 400 of them to test with, and 30 more as PNG files named by their label."""
    random = np.random.default_rng(21)
    y = np.arange(2000) % len(LABELS)
    x = np.stack([np.asarray(shape(int(label), random)) for label in y])[:, None]
    np.savez(folder / "shapes.npz", x=x[:1600], y=y[:1600], x_test=x[1600:], y_test=y[1600:], labels=np.array(LABELS))
    for number in range(30):
        label = number % len(LABELS)
        shape(label, random).save(folder / f"{LABELS[label]}-{number}.png")


class User:
    """Types commands in one directory, with nothing but the wheel."""

    def __init__(self, folder: Path, site: Path) -> None:
        self.folder, self.environment = folder, os.environ | {"PYTHONPATH": str(site)}

    def types(self, command: str) -> str:
        """Run a command that has to end well; what it printed."""
        done = subprocess.run(
            [*SCRIPT, *command.split()], cwd=self.folder, env=self.environment, capture_output=True, text=True,
            timeout=1800, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"sensai {command}: {done.stderr}"
        assert "Warning" not in done.stderr, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout


def right(predictions: str) -> float:
    """The fraction of predictions, a JSON object a line, whose label is in the name of the picture."""
    answers = [json.loads(line) for line in predictions.splitlines()]
    return float(np.mean([answer["input"].startswith(answer["label"]) for answer in answers]))


@pytest.mark.soak
def test_a_network_and_pictures_of_ones_own_from_training_to_the_report(wheel: Path, tmp_path: Path) -> None:
    site, here = tmp_path / "site", tmp_path / "here"
    zipfile.ZipFile(wheel).extractall(site)
    here.mkdir()
    write_data(here)
    (here / "mine.py").write_text(NETWORK)
    user, own = User(here, site), "--data npz:shapes.npz --model mine:Net"
    pictures = sorted(path.name for path in here.glob("*.png"))

    user.types(f"train {own} --epochs 12 --out net.safetensors")
    prune = f"prune {own} --weights net.safetensors --assignment cyclic --redundancy 3 --macs 0.4"
    prune += " --recover-images 12000 --images 4000"
    assert "tolerates the loss of any 2 of 6 workers" in user.types(f"{prune} --dry-run")
    assert "6 subnets" in user.types(f"{prune} --out run")
    user.types("export run --out bundle --monolith")
    user.types("export run --out bundle --monolith --force --name shapes")
    manifest = json.loads((here / "bundle/manifest.json").read_text())
    chance = 1 / len(LABELS)
    for who in ("reference", "monolith", "test"):
        assert manifest["accuracy"][who] > 3 * chance, manifest["accuracy"]
    assert manifest["input"]["image"] is not None
    assert "every file is as it was written" in user.types("inspect bundle")
    assert right(user.types(f"predict bundle {' '.join(pictures)} --json")) > 3 * chance
    assert over_http(user, pictures) > 3 * chance
    user.types("report run --bundle bundle --out report.html")
    page = (here / "report.html").read_text()
    assert "latency, slowest worker" in page
    assert all(label in page for label in LABELS)


def over_http(user: User, pictures: Sequence[str]) -> float:
    """Serve the bundle, ask for all pictures, end the server; the fraction that is right."""
    command = [*SCRIPT, "serve", "bundle", "--http", "127.0.0.1:0"]
    with subprocess.Popen(
        command, cwd=user.folder, env=user.environment, stdout=subprocess.PIPE, text=True
    ) as server:  # fmt: skip
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[1]
            share = right(user.types(f"predict {url} {' '.join(pictures)} --json"))
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()
    return share
