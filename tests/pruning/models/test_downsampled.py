"""A network behind the mean over neighbours gives what it gives for the smaller input, or says why it cannot."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pruning import models
from sensai_serve.errors import InputError
from sensai_serve.preprocess import InputSpec


@pytest.mark.parametrize(
    ("layers", "shape", "small"),
    [
        ([nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)], (3, 12, 18), (3, 4, 6)),
        ([nn.Conv1d(2, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 5)], (2, 30), (2, 10)),
    ],
    ids=["pictures", "series"],
)
def test_a_downsampled_network_answers_for_the_means(layers, shape, small):
    network = nn.Sequential(*layers).eval()
    coarse = torch.randn(2, *small)
    fine = coarse
    for axis in range(2, coarse.ndim):
        fine = fine.repeat_interleave(3, axis)
    assert models.downsample(network, 1, shape) is network
    downsampled = models.downsample(network, 3, shape)
    torch.testing.assert_close(downsampled(fine), network(coarse))
    assert models.kind_of(downsampled) == "Sequential"


@pytest.mark.parametrize(
    ("shape", "inputs", "message"),
    [
        ((13,), (), r"downsample is 3, expected inputs of \[channels, steps\] or \[channels, H, W\], not \[13\]"),
        ((3, 12, 14), (), r"downsample is 3, expected a divisor of each side of inputs \[3, 12, 14\]"),
        ((3, 6, 6), (), r"downsample is 3, expected a model that takes inputs of \[3, 2, 2\] too \("),
        ((9,), (InputSpec((9,), dtype="INT64", name="ids"),), r"not ids INT64 \[9\]"),
    ],
)
def test_what_cannot_be_downsampled_is_refused(shape, inputs, message):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 5))
    with pytest.raises(InputError, match=message):
        models.downsample(network, 3, shape, inputs)
