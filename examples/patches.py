"""Pictures in patches: a small vision transformer on CIFAR-10 loses heads, feed-forward width and whole branches.

    python examples/patches.py --data cifar10:DIR --out runs/patches

DIR holds the binary version of CIFAR-10, https://www.cs.toronto.edu/~kriz/cifar.html. As it is given, the training is
short enough for one core: about half an hour, and half as long again for what follows. `--passes` and `--images` say
how much is trained; a stopped command goes on where it was when it is given again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from figures import COLUMNS, row, sensai, table
from torch import Tensor, nn

PATCH, WIDTH, SIZE, DEPTH = 4, 64, 16, 4
"""Pixels a side of a patch, channels of a token, channels of a head, and encoders."""


class Attention(nn.Module):
    """Attention over all tokens, in heads of `SIZE` channels."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.project = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[N, tokens, channels] to the same."""
        q, k, v = (layer(x).unflatten(2, (-1, SIZE)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.project(y)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Attention and a feed-forward layer, each with a skip around it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), Attention()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[N, tokens, channels] to the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class Vit(nn.Module):
    """A vision transformer: patches with their places, encoders, and the mean of all tokens."""

    def __init__(self, n_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.patches = nn.Conv2d(channels, WIDTH, PATCH, stride=PATCH)
        self.places = nn.Parameter(torch.randn(1, height // PATCH * (width // PATCH), WIDTH) * 0.02)
        self.encoders = nn.Sequential(*(Encoder() for _ in range(DEPTH)))
        self.norm, self.linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] to logits [N, C]."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.linear(self.norm(self.encoders(x)).mean(1))  # type: ignore[no-any-return]


def train(source: str, weights: Path, passes: int, rate: float = 2e-3, batch: int = 64) -> None:
    """Train the network on the part of the data that `sensai prune` chooses nothing on.

    `sensai train` would do it too. After each pass a file beside `weights` keeps what is needed to go on.
    """
    from safetensors.torch import save_file

    from pruning.data import load, split
    from pruning.training.augment import augment, draw

    dataset, unfinished = load(source), weights.with_suffix(".unfinished")
    rows, _ = split(dataset.y, 0.1, 0)
    torch.manual_seed(0)
    network = Vit(dataset.n_classes, dataset.spec.shape)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.05, fused=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=passes * -(-len(rows) // batch))
    parts, done = {"network": network, "optimiser": optimiser, "cycle": cycle}, 0
    if unfinished.exists():
        state = torch.load(unfinished, weights_only=True)
        done = state.pop("done")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    y = torch.from_numpy(dataset.y)
    for number in range(done, passes):
        began, losses = time.monotonic(), []
        generator = torch.Generator().manual_seed(number)
        order = torch.from_numpy(rows)[torch.randperm(len(rows), generator=generator)]
        for at in order.split(batch):
            x = torch.from_numpy(np.asarray(dataset.prepared(dataset.x[at.numpy()])))
            x = augment(x, dataset.augmentation, draw(len(x), dataset.augmentation, generator))
            loss = F.cross_entropy(network(x), y[at])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            cycle.step()
            losses.append(loss.item())
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save({**state, "done": number + 1}, unfinished)
        took = time.monotonic() - began
        print(f"pass {number + 1} of {passes}, loss {np.mean(losses):.3f}, {took:.0f} s", flush=True)
    save_file(network.state_dict(), weights)
    unfinished.unlink()


def main(args: list[str] | None = None) -> None:
    """Train, prune and export the network, and print what it is worth."""
    from pruning.data import load
    from sensai_serve.bundles import Bundle

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="cifar10:DIR, or any other source of pictures")
    parser.add_argument("--out", type=Path, default=Path("runs/patches"), help="a directory; what is there goes on")
    parser.add_argument("--passes", type=int, default=8, help="over the training part, for the reference")
    parser.add_argument(
        "--images", type=int, default=180_000, help="to retrain the compact network with; a tenth for each worker"
    )
    parser.add_argument(
        "--macs", type=float, default=0.4, help="fraction of the reference's multiplications that a worker keeps"
    )
    parser.add_argument("--depth", type=float, default=0.25, help="fraction of the branches that are dropped whole")
    parser.add_argument("--redundancy", type=int, default=3, help="workers for each class")
    chosen = parser.parse_args(args)
    chosen.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    weights, run, bundle = (chosen.out / name for name in ("vit.safetensors", "run", "bundle"))
    if not weights.exists():
        train(chosen.data, weights, chosen.passes)
    if not bundle.exists():
        sensai("prune", "--data", chosen.data, "--model", "patches:Vit", "--weights", weights, "--out", run,
               "--assignment", "cyclic", "--redundancy", chosen.redundancy, "--macs", chosen.macs,
               "--depth", chosen.depth, "--merge", "mean", "--recover-images", chosen.images,
               "--images", max(chosen.images // 10, 1), "--quiet", "--threads", 1)  # fmt: skip
        sensai("export", run, "--out", bundle, "--name", "patches", "--quiet")
    held = load(chosen.data)
    table(
        COLUMNS,
        [row("ViT, patch 4", Bundle.open(bundle), held.x_test, held.y_test, held.prepared)],
        chosen.out / "figures.md",
    )


if __name__ == "__main__":
    main()
