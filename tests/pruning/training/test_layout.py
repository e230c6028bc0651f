"""Networks are trained with channels last where they run so, and as they are where their code forbids it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pruning.training.layout import suited_layout
from pruning.training.loop import Schedule, Trainer


class Viewed(nn.Module):
    """A network that flattens as many do: by `view`, which wants the channels before the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.output = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 16 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 16, 16] to logits [N, 5]."""
        x = torch.relu(self.convolution(x))
        return self.output(x.view(len(x), -1))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_that_flattens_by_view_is_trained(precision):
    network = Viewed()
    trainer = Trainer(network, Schedule(8, 0.1, 4), (3, 16, 16), precision)
    before = network.output.weight.detach().clone()
    trainer.step(trainer.forward(torch.randn(4, 3, 16, 16)).square().mean())
    trainer.finish()
    assert not torch.equal(network.output.weight, before)


def test_channels_are_last_where_the_network_runs_so():
    class Meaned(Viewed):
        def forward(self, x: Tensor) -> Tensor:
            return self.output(torch.relu(self.convolution(x)).flatten(1))

    shape = (3, 16, 16)
    assert suited_layout(Meaned(), shape, bf16=False) == torch.channels_last
    assert suited_layout(Viewed(), shape, bf16=True) == torch.contiguous_format
    assert suited_layout(nn.Linear(13, 2), (13,), bf16=True) == torch.contiguous_format
