"""Who is speaking? Series of 12 readings, 7 to 29 steps long, of nine speakers: 1-d convolutions and an LSTM.

    python examples/live_series.py --out runs/series

The data is JapaneseVowels (Kudo, Toyama and Shimbo, 1999), which comes with the package aeon: its wheel is downloaded
with pip and read, not installed; `--wheel FILE` takes one that is there. 270 series are trained on, 370 are the test.
Each network takes two inputs, the series and which of its steps are there, so that clients send series as long as they
are.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from figures import COLUMNS, row, sensai, table
from torch import Tensor, nn

WHEEL = "aeon==1.6.0"
FILE = "aeon/datasets/data/JapaneseVowels/JapaneseVowels_{}.ts"
WIDTH = 64


class Convolutions(nn.Module):
    """Three 1-d convolutions, and the mean over the steps that are there."""

    def __init__(self, n_classes: int, input_shape: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        channels = input_shape["series"][0]
        self.layers = nn.ModuleList(nn.Conv1d(n, WIDTH, 5, padding=2) for n in (channels, WIDTH, WIDTH))
        self.linear = nn.Linear(WIDTH, n_classes)

    def forward(self, series: Tensor, there: Tensor) -> Tensor:
        """[N, 12, steps] and [N, steps] to logits [N, C]."""
        mask = there.unsqueeze(1).to(series.dtype)
        x = series * mask  # a convolution must not read what only fills up
        for layer in self.layers:
            x = torch.relu(layer(x)) * mask
        return self.linear(x.sum(2) / mask.sum(2).clamp(min=1))  # type: ignore[no-any-return]


class Lstm(nn.Module):
    """An LSTM, and the mean of its outputs over the steps that are there."""

    def __init__(self, n_classes: int, input_shape: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.layer = nn.LSTM(input_shape["series"][0], WIDTH, batch_first=True)
        self.linear = nn.Linear(WIDTH, n_classes)

    def forward(self, series: Tensor, there: Tensor) -> Tensor:
        """[N, 12, steps] and [N, steps] to logits [N, C]."""
        mask = there.unsqueeze(2).to(series.dtype)
        x = self.layer(series.transpose(1, 2))[0] * mask
        return self.linear(x.sum(1) / mask.sum(1).clamp(min=1))  # type: ignore[no-any-return]


NETWORKS = {"convolutions": "live_series:Convolutions", "lstm": "live_series:Lstm"}


def fetch(folder: Path) -> Path:
    """Download the wheel that the data comes with."""
    print(f"$ pip download --no-deps {WHEEL}", flush=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    subprocess.run(pip, check=True)
    return next(folder.glob("aeon-*.whl"))


def read(wheel: Path, part: str) -> tuple[list[np.ndarray], list[str]]:
    """The series [12, steps] of one part, TRAIN or TEST, and their labels."""
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(FILE.format(part)).decode().splitlines()
    series, labels = [], []
    for line in lines[lines.index("@data") + 1 :]:
        *channels, label = line.split(":")
        series.append(np.array([channel.split(",") for channel in channels], np.float32))
        labels.append(f"speaker {label.strip()}")
    return series, labels


def write(wheel: Path, out: Path) -> None:
    """Write both parts as a file of arrays, shorter series followed by zeros."""
    parts = {"": read(wheel, "TRAIN"), "_test": read(wheel, "TEST")}
    longest = max(one.shape[1] for series, _ in parts.values() for one in series)
    arrays: dict[str, np.ndarray] = {}
    for suffix, (series, labels) in parts.items():
        arrays[f"series{suffix}"] = np.stack([np.pad(one, [(0, 0), (0, longest - one.shape[1])]) for one in series])
        arrays[f"there{suffix}"] = np.arange(longest) < np.array([[one.shape[1]] for one in series])
        arrays[f"y{suffix}"] = np.array(labels)
    np.savez(out, inputs=["series", "there"], **arrays)  # type: ignore[arg-type]


def main(args: list[str] | None = None) -> None:
    """Train, prune and export each network, and print what they are worth."""
    from pruning.data import load
    from sensai_serve.bundles import Bundle

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/series"), help="a directory; what is there is not made anew"
    )
    parser.add_argument("--wheel", type=Path, help="the wheel of aeon, where it has been downloaded")
    parser.add_argument("--network", action="append", choices=NETWORKS, help="one of them; both if not given")
    parser.add_argument("--redundancy", type=int, default=3, help="workers for each speaker")
    parser.add_argument("--quick", action="store_true", help="next to no training, to see it run")
    chosen = parser.parse_args(args)
    chosen.out.mkdir(parents=True, exist_ok=True)
    data = chosen.out / "vowels.npz"
    if not data.exists():
        write(chosen.wheel or fetch(chosen.out), data)
    source, quiet = f"npz:{data}", ["--quiet", "--threads", "1"]
    rows = []
    for name in chosen.network or NETWORKS:
        weights, run, bundle = (chosen.out / f"{name}{suffix}" for suffix in (".safetensors", "-run", "-bundle"))
        if not weights.exists():
            sensai("train", "--data", source, "--model", NETWORKS[name], "--out", weights, "--batch", 32,
                   "--rate", 0.05, "--epochs", 1 if chosen.quick else 150, *quiet)  # fmt: skip
        budget = (
            ["--recover-images", 64, "--images", 32]
            if chosen.quick
            else ["--recover-images", 60_000, "--images", 8_000]
        )
        if not bundle.exists():
            sensai("prune", "--data", source, "--model", NETWORKS[name], "--weights", weights, "--out", run,
                   "--assignment", "cyclic", "--redundancy", chosen.redundancy, "--macs", 0.25, "--batch", 32,
                   *budget, *quiet)  # fmt: skip
            sensai("export", run, "--out", bundle, "--dynamic", "series:1", "--dynamic", "there", "--quiet",
                   *(["--pad-channels", 1] if chosen.quick else []))  # fmt: skip
        held = load(source)
        rows.append(row(name, Bundle.open(bundle), held.x_test, held.y_test, held.prepared))
    table(COLUMNS, rows, chosen.out / "figures.md")


if __name__ == "__main__":
    main()
