"""Which language is this line in? Lines of Debian's manual pages in sixteen languages: a transformer and a GRU.

    python examples/live_text.py --out runs/text

The pages are downloaded with apt and unpacked, not installed; `--pages DIR` takes a folder of pages that is there, such
as ``/usr/share``. Their markup is stripped, a tokenizer is trained on the lines, and bundles hold it, so that clients
send text.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import manual_pages
import numpy as np
import torch
import torch.nn.functional as F
from figures import COLUMNS, row, sensai, table
from torch import Tensor, nn

VOCABULARY = 2048
"""Tokens of the tokenizer, 0 among them, which follows the end of a line."""
LENGTH = 32
"""Tokens of a line; of longer ones the first."""
WIDTH, HEAD = 96, 16
"""Of embeddings and of an attention head."""


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each beside an identity."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.project = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[N, LENGTH, WIDTH] to the same."""
        y = self.norm1(x)
        q, k, v = (layer(y).unflatten(-1, (-1, HEAD)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        x = x + self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Two blocks; the mean over a line's tokens goes to the classes."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks, self.norm = nn.Sequential(Block(), Block()), nn.LayerNorm(WIDTH)
        self.classes = nn.Linear(WIDTH, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, LENGTH] to logits [N, C]."""
        x = self.tokens(x) + self.places(torch.arange(x.shape[1], device=x.device))
        return self.classes(self.norm(self.blocks(x)).mean(1))  # type: ignore[no-any-return]


class Gru(nn.Module):
    """A GRU in both directions; the mean of its outputs goes to the classes."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layer = nn.GRU(WIDTH, WIDTH, batch_first=True, bidirectional=True)
        self.classes = nn.Linear(2 * WIDTH, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, LENGTH] to logits [N, C]."""
        return self.classes(self.layer(self.tokens(x))[0].mean(1))  # type: ignore[no-any-return]


NETWORKS: dict[str, type[nn.Module]] = {"transformer": Transformer, "gru": Gru}


def write(out: Path, pages: Path, most: int) -> None:
    """Write ``train.jsonl``, ``test.jsonl``, of each language as many lines, and a tokenizer trained on the former."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    lines = manual_pages.lines(pages)
    found = [lines[at] for at in np.random.default_rng(0).permutation(len(lines))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["[PAD]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    for test, wanted in ((False, most), (True, max(1, most // 5))):
        part = [line for line in found if line.test == test]
        labels = sorted({line.label for line in part})
        kept = [line for label in labels for line in [one for one in part if one.label == label][:wanted]]
        rows = [json.dumps({"text": line.text, "label": line.label}, ensure_ascii=False) for line in kept]
        if not test:
            tokenizer.train_from_iterator([line.text for line in kept], trainer)
            tokenizer.save(str(out / "tokenizer.json"))
        (out / ("test.jsonl" if test else "train.jsonl")).write_text("\n".join(rows) + "\n", encoding="utf-8")
        print(f"{'test' if test else 'train'}: {len(kept)} lines in {', '.join(labels)}", flush=True)


def source_of(out: Path) -> str:
    """The lines as `sensai` takes them."""
    files = f"{out / 'train.jsonl'}?test={out / 'test.jsonl'}&tokens={out / 'tokenizer.json'}"
    return f"jsonl:{files}&length={LENGTH}&long=cut"


def train(source: str, name: str, weights: Path, epochs: int, batch: int = 64) -> None:
    """Train a network on the part of the data that `sensai prune` chooses nothing on.

    `sensai train` would do it too, with AdamW, but without label smoothing.
    """
    from safetensors.torch import save_file

    from pruning.data import load, split

    dataset = load(source)
    torch.manual_seed(0)
    network, (rows, _) = NETWORKS[name](dataset.n_classes), split(dataset.y, 0.1, 0)
    x, y = torch.from_numpy(np.asarray(dataset.x)[rows]).long(), torch.from_numpy(dataset.y[rows])
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=epochs * -(-len(x) // batch))
    for epoch in range(epochs):
        losses = []
        for chosen in torch.randperm(len(x)).split(batch):
            loss = F.cross_entropy(network(x[chosen]), y[chosen], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            cycle.step()
            losses.append(loss.item())
        print(f"{name}: epoch {epoch + 1} of {epochs}, loss {np.mean(losses):.3f}", flush=True)
    save_file(network.state_dict(), weights)


def main(args: list[str] | None = None) -> None:
    """Train, prune and export each network, and print what they are worth."""
    from pruning.data import load
    from sensai_serve.bundles import Bundle

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/text"), help="a directory; what is there is used")
    parser.add_argument("--pages", type=Path, help="a folder of manual pages, in place of downloading them")
    parser.add_argument("--network", action="append", choices=NETWORKS, help="one of them; both if not given")
    parser.add_argument("--quick", action="store_true", help="next to no training, to see it run")
    chosen = parser.parse_args(args)
    chosen.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if not (chosen.out / "test.jsonl").exists():
        if chosen.pages is None and not (chosen.out / "pages").is_dir():
            manual_pages.download(chosen.out / "pages")
        write(chosen.out, chosen.pages or chosen.out / "pages", 2000)
    source, quiet = source_of(chosen.out), ["--quiet", "--threads", 1]
    images = (
        ["--recover-images", 64, "--images", 32] if chosen.quick else ["--recover-images", 200_000, "--images", 20_000]
    )
    rows = []
    for name in chosen.network or NETWORKS:
        weights, run, bundle = (chosen.out / f"{name}{suffix}" for suffix in (".safetensors", "-run", "-bundle"))
        if not weights.exists():
            train(source, name, weights, 1 if chosen.quick else 6)
        dataset = load(source)
        if not bundle.exists():
            sensai("prune", "--data", source, "--model", f"live_text:{NETWORKS[name].__name__}", "--weights", weights,
                   "--out", run, "--assignment", "cyclic", "--groups", dataset.n_classes // 2, "--uneven",
                   "--redundancy", 3, "--macs", 0.25, "--merge", "mean", *images, *quiet)  # fmt: skip
            sensai("export", run, "--out", bundle, "--name", f"languages-{name}", *quiet[:1])
        rows.append(row(name, Bundle.open(bundle), dataset.x_test, dataset.y_test, dataset.prepared))
    table(COLUMNS, rows, chosen.out / "figures.md")


if __name__ == "__main__":
    main()
