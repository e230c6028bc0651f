"""Batches made on the training device are those that the CPU makes."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pruning.data import Augmentation, Dataset
from pruning.training import batches
from pruning.training.augment import Views
from pruning.training.batches import Batches, normalise_on_device
from sensai_serve.preprocess import InputSpec, Normalisation, normalise

SPEC = InputSpec((3, 8, 8), normalisation=Normalisation(1 / 255, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)))
CPU = torch.device("cpu")


@given(
    raw=arrays(np.uint8, (2, 3, 8, 8)) | arrays(np.float32, (2, 3, 8, 8), elements=st.floats(-1e3, 1e3, width=32)),
    scale=st.floats(1e-3, 1e3),
    std=st.lists(st.floats(1e-2, 1e2), min_size=3, max_size=3),
)
def test_the_device_normalises_as_the_server_does(raw, scale, std):
    spec = InputSpec((3, 8, 8), normalisation=Normalisation(scale, (0.5, 0.1, -2.0), tuple(std)))
    found = normalise_on_device(torch.from_numpy(raw), spec).numpy()
    np.testing.assert_array_equal(found, normalise(raw, spec))


def test_images_kept_on_the_device_give_the_same_batches(monkeypatch):
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (20, 3, 8, 8), dtype=np.uint8), np.arange(20) % 2
    dataset = Dataset("pictures", ("a", "b"), SPEC, x, y, x, y, Augmentation(flip=True, shift=2))
    indices = random.permutation(20)[:12]
    for views in (None, Views(3, 20, dataset.augmentation, 7)):
        sent = Batches(dataset, views, CPU, torch.Generator().manual_seed(1)).make(indices)
        with monkeypatch.context() as patched:  # as if the CPU were a card
            patched.setattr(batches, "fits", lambda size, device: True)
            patched.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
            kept = Batches(dataset, views, CPU, torch.Generator().manual_seed(1)).make(indices)
        assert torch.equal(sent.x, kept.x)
        assert torch.equal(sent.indices, kept.indices)
        assert views is None or (
            sent.views is not None and kept.views is not None and torch.equal(sent.views, kept.views)
        )
