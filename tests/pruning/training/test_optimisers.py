"""Which optimiser a network is trained with: its layers say, or the user does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.data import Dataset
from pruning.sampling import uniform
from pruning.training.loop import Schedule, Trainer, fit
from pruning.training.optimisers import FROM_SCRATCH, RETRAINING, Rates, suited
from sensai_serve.preprocess import InputSpec

NORMALISED = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
READINGS = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("model", "asked", "rate", "expected"),
    [
        (READINGS, "auto", RETRAINING, (torch.optim.SGD, 0.01)),
        (NORMALISED, "auto", RETRAINING, (torch.optim.AdamW, 0.001)),
        (NORMALISED, "auto", FROM_SCRATCH, (torch.optim.AdamW, 0.002)),
        (NORMALISED, "sgd", FROM_SCRATCH, (torch.optim.SGD, 0.1)),
        (READINGS, "adamw", 0.5, (torch.optim.AdamW, 0.5)),
    ],
)
def test_the_optimiser_and_its_rate(model, asked, rate: float | Rates, expected) -> None:
    trainer = Trainer(model, Schedule(3200, rate, 32, asked), (3,), "fp32")
    assert (type(trainer.optimiser), trainer.optimiser.param_groups[0]["max_lr"]) == expected
    decays = [group["weight_decay"] for group in trainer.optimiser.param_groups]
    assert decays[0] > 0 == decays[1]


def test_tokens_and_attention_want_adamw() -> None:
    assert suited(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)), "auto") == "adamw"
    assert suited(nn.MultiheadAttention(4, 2), "auto") == "adamw"


class PostNorm(nn.Module):
    """Three encoders that normalise behind each sum, and a pooled first token, as BERT has it."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(30, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoders = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.pooler, self.classes = nn.Linear(32, 32), nn.Linear(32, 3)
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(torch.tanh(self.pooler(self.encoders(self.tokens(x.long()))[:, 0])))


def test_a_network_of_bert_s_kind_learns() -> None:
    """SGD leaves it at chance, a third, and so were all networks that were cut out of it."""
    draw = np.random.default_rng(0)
    y = np.arange(600) % 3
    x = draw.integers(1, 10, (600, 8)) + np.where(draw.random((600, 8)) < 0.5, 0, 9 * y[:, None])
    dataset = Dataset("said", ("a", "b", "c"), InputSpec((8,)), x.astype(np.float32), y, x.astype(np.float32), y)
    torch.manual_seed(0)
    model = PostNorm()
    fit(
        model,
        dataset,
        batches=uniform.batches(y, np.arange(600), (), 32, np.random.default_rng(0)),
        loss=lambda batch, logits: F.cross_entropy(logits, torch.from_numpy(y)[batch.indices]),
        schedule=Schedule(6000, FROM_SCRATCH, 32),
        seed=0,
    )
    with torch.no_grad():
        assert (model(torch.from_numpy(x)).argmax(1).numpy() == y).mean() > 0.9
