"""Recurrent layers in ONNX: one operator each, the same answers as torch's at every length, projections included."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from export.lengths import cut, with_free_axes
from export.parity import check_parity
from export.to_onnx import to_onnx
from sensai_serve.errors import ModelError
from sensai_serve.preprocess import InputSpec

SPEC = InputSpec((12, 5), "series")


class Every(nn.Module):
    """Each kind of layer: stacked, in both directions, without biases, with a projection, with a state to begin."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(12, 8, bias=False, batch_first=True)
        self.second = nn.GRU(8, 8, bidirectional=False)
        self.rnn = nn.RNN(8, 7, nonlinearity="relu", bidirectional=True, batch_first=True)
        self.projected = nn.LSTM(14, 9, num_layers=2, proj_size=4, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(8 + 8 + 4 + 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, state = self.gru(self.lstm(x)[0])
        x, hidden = self.second(x.transpose(0, 1), state)
        x = self.rnn(x.transpose(0, 1))[0]
        x, (projected, cell) = self.projected(x)
        return self.linear(torch.cat([x.mean(1), hidden[-1], projected[-1], cell[-1]], 1)).sigmoid()


class Begun(nn.Module):
    """Gives an LSTM with a projection a state."""

    def __init__(self) -> None:
        super().__init__()
        self.reader, self.linear = nn.LSTM(5, 9, proj_size=4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        given = torch.ones(1, x.shape[0], 4), torch.ones(1, x.shape[0], 9)
        return self.linear(self.reader(x, given)[0][:, -1])


def test_every_recurrent_layer_is_one_operator_at_any_length():
    torch.manual_seed(0)
    network = Every().eval()
    before = dict(network.named_buffers())
    specs = with_free_axes([SPEC], {"series": 0}, None)
    exported = to_onnx(network, specs)
    found = [node.op_type for node in onnx.load_from_string(exported).graph.node]
    assert {kind: found.count(kind) for kind in ("LSTM", "GRU", "RNN", "Loop", "Scan")} == {
        "LSTM": 4, "GRU": 2, "RNN": 1, "Loop": 0, "Scan": 0,
    }  # fmt: skip
    inputs = np.random.default_rng(0).normal(size=(4, 12, 5)).astype(np.float32)
    for length in (1, 7, 12):
        check_parity(network, exported, cut(inputs, specs, length), f"length {length}")
    assert dict(network.named_buffers()) == before  # torch runs the network as before


def test_what_onnx_has_no_operator_for_is_refused_by_its_name():
    with pytest.raises(
        ModelError, match=r"reader, an LSTM with a projection, begins with a state that is given"
    ) as told:
        to_onnx(Begun().eval(), [SPEC])
    assert "\n" not in str(told.value)
