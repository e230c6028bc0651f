"""Several inputs, and texts, from data to a bundle: trained on as one FP32 tensor, sent as what they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from export.assemble import export
from pruning import models
from pruning.cutting.blocks import trace
from pruning.data import load as load_data
from pruning.pipeline.prune import prune_reference
from pruning.planning.plan import make_plan
from pruning.recipe import Recipe
from pruning.run import Run
from sensai_serve.bundles import Bundle
from sensai_serve.cli.main import app
from sensai_serve.errors import InputError, RequestError
from sensai_serve.local import load
from sensai_serve.text_spec import TokenizerSpec

LABELS = ("de", "en", "fr", "it")
NAMES = ("input_ids", "attention_mask", "age")
QUICK = {"recover_images": 128, "images": 64, "batch": 32, "profile_images": 8}


class Reader(nn.Module):
    """Takes tokens, their mask and two readings by name, as the library transformers does, and gives a dict."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.tokens, self.up, self.down = nn.Embedding(40, 16), nn.Linear(16, 24), nn.Linear(24, 16)
        self.ages, self.linear = nn.Linear(2, 16), nn.Linear(16, n_classes)

    def forward(self, input_ids=None, attention_mask=None, age=None, labels=None) -> dict[str, Tensor]:
        x = self.tokens(input_ids)
        x = x + self.down(torch.relu(self.up(x)))
        mask = attention_mask.to(x.dtype).unsqueeze(2)
        x = (x * mask).sum(1) / mask.sum(1).clamp(min=1)
        return {"features": x, "logits": self.linear(torch.relu(x + self.ages(age)))}


def reader(n_classes: int) -> nn.Module:
    return Reader(n_classes)


class Plain(nn.Module):
    """An embedding and a layer, for bytes."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.tokens, self.up, self.linear = nn.Embedding(257, 8), nn.Linear(8, 16), nn.Linear(16, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.relu(self.up(self.tokens(x))).mean(1))


def plain(n_classes: int) -> nn.Module:
    return Plain(n_classes)


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.chdir(tmp_path)


def write_texts(path: Path) -> None:
    """Texts as rows of 9 tokens, each class with tokens of its own, and how many of them there are."""
    draw = np.random.default_rng(0)
    y = np.arange(80) % 4
    lengths = draw.integers(2, 10, 80)
    mask = np.arange(9)[None] < lengths[:, None]
    ids = np.where(mask, draw.integers(1, 10, (80, 9)) + 9 * y[:, None], 0)
    np.savez(path, input_ids=ids, attention_mask=mask, age=draw.normal(size=(80, 2)), y=y, labels=LABELS)


def made(source: str, model: str) -> Run:
    dataset = load_data(source)
    torch.manual_seed(0)
    network = models.create(f"test_several_inputs:{model}", 4, dataset.spec.shape, dataset.inputs)
    torch.save(network.state_dict(), "w.pt")
    recipe = Recipe(source, f"test_several_inputs:{model}", assignment="grouped", groups=2, grouping="random",
                    amount=0.6, **QUICK)  # fmt: skip
    return prune_reference(make_plan(recipe, "w.pt", threads=1), Path("run"))


def test_a_bundle_of_several_inputs_takes_them_by_name_and_at_every_length(tmp_path):
    write_texts(tmp_path / "texts.npz")
    run = made(f"npz:texts.npz?inputs={','.join(NAMES)}", "reader")
    for worker in (0, 1):
        small = run.load(run.folder(worker)).network.network
        assert small.up.out_features < 24
        assert small.tokens.embedding_dim < 16
    said = CliRunner().invoke(app, ["export", "run", "--out", "bundle", "--pad-channels", "1", "--quiet",
                                    "--dynamic", "input_ids", "--dynamic", "attention_mask:0"])  # fmt: skip
    assert said.exit_code == 0, said.output
    assert "requests choose a length of 1 to 9" in said.output
    bundle = Bundle.open("bundle")
    ids, mask, age = bundle.manifest.inputs
    assert [spec.described for spec in (ids, mask, age)] == ["[length of 1 to 9]", "[length of 1 to 9]", "[2]"]
    assert [spec.dtype for spec in (ids, mask, age)] == ["INT64", "BOOL", "FP32"]
    assert (ids.vocabulary, mask.vocabulary) == (40, None)
    length = bundle.manifest.provenance["length"]
    assert length["same_label"] == length["padded"] > 0
    assert length["largest_difference"] < 1e-5  # the mask leaves padding out
    classifier, golden = load(bundle), bundle.golden()
    answer = classifier.predict_tensor(golden.inputs)
    golden.check(answer.scores, answer.class_id)
    with np.load("texts.npz") as arrays:
        one = {name: arrays[name][5] for name in NAMES}
    whole = classifier.predict(one)
    n = int(one["attention_mask"].sum())
    short = classifier.predict({**one, "input_ids": one["input_ids"][:n], "attention_mask": [True] * n})
    assert short.scores == pytest.approx(whole.scores, abs=1e-5)
    with pytest.raises(RequestError, match="input 'attention_mask': length is 3, expected 4, which input 'input_ids'"):
        classifier.predict({**one, "input_ids": [1] * 4, "attention_mask": [True] * 3})
    for chosen, line in (
        ({"ids": 0}, "no input 'ids', expected one of input_ids, attention_mask, age"),
        ({"input_ids": 1}, "has no axis 1, expected 0 to 0"),
        ({"input_ids": 0, "age": 0}, "normalised differently at each place of axis 0"),
    ):
        with pytest.raises(InputError, match=line):
            export(run, tmp_path / "other", dynamic=chosen)


def test_a_traced_network_takes_inputs_side_by_side_and_apart(tmp_path):
    write_texts(tmp_path / "texts.npz")
    dataset = load_data(f"npz:texts.npz?inputs={','.join(NAMES)}")
    network = models.create("test_several_inputs:reader", 4, dataset.spec.shape, dataset.inputs)
    x, apart = torch.from_numpy(dataset.x[:3]), dataset.prepared(dataset.x[:3])
    # Before normalisation `age` has other numbers, so both are given what is normalised.
    norm = dataset.spec.normalisation
    x = (x - torch.tensor(norm.mean)) / torch.tensor(norm.std)
    given = tuple(torch.from_numpy(array) for array in apart.arrays.values())
    for each in (network, trace(network)):
        torch.testing.assert_close(each(x.float()), network(given))


def test_a_bundle_of_texts_takes_tokens_of_its_vocabulary(tmp_path):
    lines = [{"text": f"{n} {label * 3}", "label": label} for n in range(20) for label in LABELS]
    (tmp_path / "said.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run = made("jsonl:said.jsonl?length=16", "plain")
    bundle = export(run, tmp_path / "bundle", padding=1, with_evaluation=False)
    (spec,) = bundle.manifest.inputs
    assert (spec.name, spec.dtype, spec.shape, spec.vocabulary) == ("tokens", "INT64", (16,), 257)
    golden, classifier = bundle.golden(), load(bundle)
    assert golden.tensor.dtype == np.int64
    answer = classifier.predict_tensor(golden.inputs)
    golden.check(answer.scores, answer.class_id)
    assert classifier.predict([1] * 16).label in LABELS
    assert bundle.manifest.tokenizer == TokenizerSpec("tokens", 16)
    ready = [byte + 1 for byte in b"17 dedede"]
    assert classifier.predict("17 dedede") == classifier.predict(ready + [0] * (16 - len(ready)))
    with pytest.raises(RequestError, match="has 17 tokens, expected at most 16"):
        classifier.predict("x" * 17)
    with pytest.raises(RequestError, match="holds 257, expected 0 to 256, the vocabulary"):
        classifier.predict([257] * 16)
