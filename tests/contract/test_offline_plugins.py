"""Every criterion, head, sampling and grouping through what its kind promises."""

from __future__ import annotations

import gc
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pruning import data, heads, models
from pruning.criteria import GroupEvidence, Member, MemberWeights, Statistics, Thresholds
from pruning.cutting.profile import profile
from pruning.data import Dataset
from pruning.grouping import Classes, class_confusion, class_features
from pruning.grouping import confusion as confusion_grouping
from pruning.heads import Subnet, replace_output
from pruning.sampling import shuffled
from sensai_serve import plugins
from sensai_serve.errors import AssignmentError, ModelError, PluginError
from sensai_serve.preprocess import InputSpec

CRITERIA = plugins.available("pruning.criteria")
HEADS = plugins.available("pruning.heads")
SAMPLINGS = plugins.available("pruning.sampling")
GROUPINGS = plugins.available("pruning.grouping")


def statistics(sparsity, magnitude) -> Statistics:
    sparsity, magnitude = np.asarray(sparsity, float), np.asarray(magnitude, float)
    return Statistics(sparsity=sparsity, zeros=sparsity, magnitude=magnitude, taylor=magnitude)


def evidence(seen: Statistics) -> GroupEvidence:
    """A group whose channels have the statistics that are given, and weights as strong as their activations."""
    channels = np.arange(len(seen.magnitude))
    member = Member("layer", channels, channels)
    weights = tuple(MemberWeights(member, role, seen.magnitude[:, None]) for role in ("producer", "batch_norm"))
    return GroupEvidence("layer", len(channels), (member,), weights, lambda layer: seen)


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_ranks_silent_channels_below_busy_ones(name):
    importance = plugins.find("pruning.criteria", name, "importance")
    ranked = importance(evidence(statistics([1, 0.9, 0.5, 0], [0, 0.1, 0.5, 0.9])), Thresholds())
    assert ranked.shape == (4,)
    assert (np.diff(ranked) > 0).all()
    assert np.isfinite(importance(evidence(statistics([1, 1], [0, 0])), Thresholds())).all()


def test_hybrid_keeps_a_rarely_active_channel_that_is_strong_when_it_is():
    importance = plugins.find("pruning.criteria", "hybrid", "importance")
    seen = statistics([0.95, 0.1], [2.0, 0.2])
    rare_and_strong, often_and_weak = importance(evidence(seen), Thresholds(theta2=1.0))
    assert rare_and_strong > 1 > often_and_weak


def table(x: np.ndarray, y: list[int]) -> Dataset:
    labels = tuple(map(str, range(max(y) + 1)))
    return Dataset("t", labels, InputSpec(x.shape[1:]), x, np.asarray(y), x, np.asarray(y))


def test_a_profile_counts_what_each_class_does_to_each_channel():
    x = np.asarray([[0.0, 2.0, -3.0], [0.001, 4.0, 1.0], [5.0, 0.0, 0.0]], np.float32)
    model = nn.Sequential(nn.Linear(3, 2))
    measured = profile(model, table(x, [0, 0, 1]), np.arange(3), theta1=0.01)
    first = measured.statistics("0", [0])
    np.testing.assert_allclose(first.sparsity, [1, 0, 0])
    np.testing.assert_allclose(first.zeros, [0.5, 0, 0.5])
    np.testing.assert_allclose(first.magnitude, [0.0005, 3, 2])
    both = measured.statistics("0", [0, 1])  # classes weigh the same, however many images each has
    np.testing.assert_allclose(both.magnitude, [(0.0005 + 5) / 2, 1.5, 1])


class Uncalled(nn.Module):
    """Uses the weights of a layer without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.output = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(nn.functional.linear(x, self.layer.weight))


def test_a_layer_that_is_never_called_cannot_be_profiled():
    measured = profile(Uncalled(), table(np.ones((2, 3), np.float32), [0, 1]), np.arange(2), theta1=0.01)
    assert measured.statistics("output", [0]).magnitude.shape == (2,)
    with pytest.raises(ModelError, match="layer is not called as a module"):
        measured.statistics("layer", [0])


def test_the_taylor_statistic_is_activation_times_gradient():
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    model = nn.Sequential(nn.Linear(3, 2))
    measured = profile(model, table(x, [0, 1, 0, 1]), np.arange(4), theta1=0.01).statistics("0", [0, 1])
    inputs = torch.from_numpy(x).requires_grad_()
    nn.functional.cross_entropy(model(inputs), torch.tensor([0, 1, 0, 1]), reduction="sum").backward()
    np.testing.assert_allclose(measured.taylor, (inputs * inputs.grad).abs().mean(0).detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "classes"),
    [(n, c) for n in HEADS for c in ((2,), (4, 0, 1), (0, 1, 2, 3, 4)) if n != "softmax" or len(c) == 5],
)
def test_a_head_turns_the_reference_s_logits_into_its_probabilities_of_the_classes(name, classes):
    head = heads.find(name)
    logits = torch.randn(6, 5) * 3
    scores = head.scores(head.own_logits(logits, classes))
    torch.testing.assert_close(scores, logits.softmax(1)[:, list(classes)], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_s_loss_is_least_at_its_targets_and_can_be_learnt(name):
    head = heads.find(name)
    classes = (0, 1, 2, 3)
    target = head.probabilities(head.own_logits(torch.randn(8, 4), classes))
    logits = torch.zeros_like(target, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.1)
    start = head.loss(logits, target).item()
    for _ in range(300):
        optimiser.zero_grad()
        head.loss(logits, target).backward()
        optimiser.step()
    assert head.loss(logits, target).item() < start
    torch.testing.assert_close(head.probabilities(logits).detach(), target, atol=0.02, rtol=0)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("convolution", [False, True])
def test_replacing_the_output_layer_starts_from_the_reference_s_answers(name, convolution):
    torch.manual_seed(0)
    classes = (0, 1, 2, 3, 4) if name == "softmax" else (3, 1)
    out = nn.Sequential(nn.Conv2d(8, 5, 1), nn.Flatten()) if convolution else nn.Linear(8, 5)
    model = nn.Sequential(nn.Linear(4, 8), *([nn.Unflatten(1, (8, 1, 1))] if convolution else []), out)
    x = torch.randn(64, 4)
    reference = model(x).softmax(1)[:, list(classes)].detach()
    head = heads.find(name)
    replace_output(model, "2.0" if convolution else "1", head, classes)
    scores = Subnet(model, head)(x)
    assert scores.shape == (64, len(classes))
    assert torch.corrcoef(torch.stack([scores.flatten(), reference.flatten()]))[0, 1] > 0.9


def test_an_output_layer_without_rows():
    with pytest.raises(ModelError, match="its output layer 0 is Conv3d"):
        replace_output(nn.Sequential(nn.Conv3d(2, 3, 1)), "0", heads.find("sigmoid"), (0,))


@pytest.mark.parametrize("name", SAMPLINGS)
@given(
    y=st.lists(st.integers(0, 4), min_size=5, max_size=50),
    classes=st.sets(st.integers(0, 4), min_size=1, max_size=5),
    size=st.integers(2, 16),
)
def test_batches_are_of_the_size_and_of_the_indices_that_were_asked(name, y, classes, size):
    labels = np.asarray([0, 1, 2, 3, 4, *y])
    batches = plugins.find("pruning.sampling", name, "batches")
    indices = np.arange(2, len(labels))
    drawn = list(islice(batches(labels, indices, sorted(classes), size, np.random.default_rng(0)), 5))
    assert all(len(batch) == size and np.isin(batch, indices).all() for batch in drawn)


def test_balanced_batches_are_half_of_the_worker_s_classes():
    y = np.repeat(np.arange(10), 30)
    batches = plugins.find("pruning.sampling", "balanced", "batches")
    for batch in islice(batches(y, np.arange(300), (4, 7), 32, np.random.default_rng(0)), 20):
        assert np.isin(y[batch], (4, 7)).sum() == 16


def test_shuffled_shows_everything_once_before_anything_twice():
    drawn = np.concatenate(list(islice(shuffled(np.arange(10), 4, np.random.default_rng(0)), 5)))
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))


def seen(features: np.ndarray) -> Classes:
    """Classes with these mean features [C, F], and logits that are the same numbers."""
    model = nn.Linear(features.shape[1], len(features), bias=False)
    nn.init.eye_(model.weight)
    dataset = table(features.astype(np.float32), list(range(len(features))))
    return Classes(model, dataset, np.arange(len(features)), np.arange(len(features)))


@pytest.mark.parametrize("name", GROUPINGS)
@pytest.mark.parametrize(("n_classes", "n_groups"), [(10, 5), (10, 3), (7, 7), (4, 1), (3, 2), (2, 2)])
def test_a_grouping_is_a_partition_into_equal_groups(name, n_classes, n_groups):
    classes = seen(np.random.default_rng(0).normal(size=(n_classes, 6)))
    group = plugins.find("pruning.grouping", name, "group")
    groups = group(classes, n_groups, 0)
    assert sorted(c for members in groups for c in members) == list(range(n_classes))
    assert len(groups) == n_groups
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    assert groups == group(classes, n_groups, 0)
    with pytest.raises(AssignmentError, match=f"groups is {n_classes + 1}, expected 1 to the number of classes"):
        group(classes, n_classes + 1, 0)


def test_tsne_puts_classes_together_that_are_alike():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 16)) * 20
    features = np.concatenate([centre + rng.normal(size=(4, 16)) for centre in centres])
    groups = plugins.find("pruning.grouping", "tsne", "group")(seen(features), 3, 0)
    assert groups == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_confusion_puts_classes_together_that_are_taken_for_one_another_or_keeps_them_apart():
    logits = 10 * np.eye(6)
    for a, b in ((0, 3), (1, 4), (2, 5)):
        logits[a, b] = 9
    together = plugins.find("pruning.grouping", "confusion", "group")(seen(logits), 3, 0)
    assert together == [[0, 3], [1, 4], [2, 5]]
    apart = plugins.find("pruning.grouping", "confusion_apart", "group")(seen(logits), 2, 0)
    assert not any({a, b} <= set(group) for group in apart for a, b in ((0, 3), (1, 4), (2, 5)))


@given(st.integers(2, 6), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_no_two_classes_gain_by_changing_places(n_classes, n_groups, seed):
    confusion = np.random.default_rng(seed).random((n_classes, n_classes))
    groups = confusion_grouping.together(confusion, min(n_groups, n_classes), 0)

    def inside(groups):
        return sum(confusion[a, b] for members in groups for a in members for b in members if a != b)

    for a in range(n_classes):
        for b in range(a):
            exchanged = [[{a: b, b: a}.get(c, c) for c in members] for members in groups]
            assert inside(exchanged) <= inside(groups) + 1e-9


def test_confusion_is_the_mean_probability_of_each_class():
    model = nn.Linear(2, 2, bias=False)
    nn.init.eye_(model.weight)
    x = np.log(np.asarray([[0.9, 0.1], [0.7, 0.3], [0.4, 0.6]], np.float32))
    confusion = class_confusion(model, table(x, [0, 0, 1]), np.arange(3), temperature=1.0)
    np.testing.assert_allclose(confusion, [[0.8, 0.2], [0.4, 0.6]], rtol=1e-5)
    assert (class_confusion(model, table(x, [0, 0, 1]), np.arange(2))[1] == 0).all()


def test_class_features_are_the_mean_of_what_feeds_the_output_layer():
    x = np.asarray([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]], np.float32)
    model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2))
    np.testing.assert_allclose(class_features(model, table(x, [0, 0, 1]), np.arange(3)), [[2, 0], [0, 5]])


def test_a_profile_leaves_no_batches_behind_for_the_garbage_collector():
    dataset = data.load("digits")
    model = models.create("cnn", 10, dataset.spec.shape)
    gc.collect()
    gc.disable()
    try:
        profile(model, dataset, np.arange(300), theta1=0.01)
        left = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.ndim == 4 and len(o) in (128, 44)]
    finally:
        gc.enable()
    assert left == []


@pytest.mark.parametrize("kind", ["criteria", "heads", "sampling", "grouping"])
def test_an_unknown_plugin_names_those_there_are(kind):
    known = plugins.available(f"pruning.{kind}")
    with pytest.raises(PluginError, match=f"nothing is called 'magic', expected one of {', '.join(known)}"):
        plugins.find(f"pruning.{kind}", "magic", "x")
