"""Networks filled up with channels of zeros: the same scores, whatever the architecture, and only where it pays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from export.assemble import export
from export.networks import MULTIPLES, Exporter, least_padding
from export.padding import padded
from pruning import data, heads, models
from pruning.cutting.channels import find_channel_groups
from pruning.cutting.cut import apply_cut
from pruning.cutting.graph import output_layer
from pruning.cutting.ratios import cut_to_ratio
from pruning.cutting.size import measure
from pruning.heads import replace_output
from pruning.pipeline.prune import prune_reference
from pruning.planning.plan import make_plan
from pruning.recipe import Budget, Recipe
from pruning.run import Network, Run
from sensai_serve.assignment import grouped
from sensai_serve.preprocess import InputSpec

LABELS = ("a", "b", "c", "d")


class Normed(nn.Module):
    """Normalises channels together, so that one more of them changes all."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.GroupNorm(1, 16)
        self.last = nn.Linear(16, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.first(x))).mean(dim=(2, 3)))


class Depthwise(nn.Module):
    """A residual around a depthwise convolution."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.bn = nn.BatchNorm2d(16)
        self.last = nn.Linear(16, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.last((x + torch.relu(self.bn(self.depth(x)))).mean(dim=(2, 3)))


class Branches(nn.Module):
    """Two branches are concatenated, and what went into them is added."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.narrow, self.wide = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 3, padding=1)
        self.last = nn.Linear(16, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(torch.cat([self.narrow(x), self.wide(x)], dim=1) + x)
        return self.last(x.mean(dim=(2, 3)))


class Viewing(nn.Module):
    """Attention with as many heads as its width allows: one more channel makes others of all."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.patches, self.qkv = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 48)
        self.project, self.last = nn.Linear(16, 16), nn.Linear(16, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        b, t, _ = x.shape
        q, k, v = (part.view(b, t, -1, 4).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        x = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1)
        return self.last(self.project(x).mean(dim=1))


def branches(n_classes: int) -> nn.Module:
    return Branches(n_classes)


def viewing(n_classes: int) -> nn.Module:
    return Viewing(n_classes)


def normed(n_classes: int) -> nn.Module:
    return Normed(n_classes)


def depthwise(n_classes: int) -> nn.Module:
    return Depthwise(n_classes)


def make_run(path, model_name: str, shape: tuple[int, ...], head: str) -> Run:
    """A run of one subnet with random weights, of which every layer has kept about two channels of five."""
    torch.manual_seed(0)
    model = models.create(model_name, len(LABELS), shape).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    budget = Budget("macs", 0.4, None)
    run = Run(path, Recipe("digits", model_name), {}, LABELS, InputSpec(shape), grouped(((0, 2), (1, 3))), budget)
    run.create(model, measure(model, shape), data.load("digits"))
    random = np.random.default_rng(0)
    groups = find_channel_groups(model, shape)
    cut = cut_to_ratio(groups, {group.layer: random.random(group.channels) for group in groups}, 0.6)
    small = apply_cut(model, cut, shape)
    replace_output(small, output_layer(model, shape), heads.find(head), (0, 2))
    run.save("subnets/00", Network((0, 2), head, cut), small)
    return run


def inputs(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(6, *shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("model", "shape", "head"),
    [("resnet8", (3, 16, 16), "sigmoid"), ("vgg11", (3, 32, 32), "softmax_others"), ("cnn", (1, 8, 8), "sigmoid"),
     ("cnn", (1, 8, 8), "softmax_others"), ("mlp", (7,), "softmax_others"),
     (f"{__name__}:depthwise", (3, 8, 8), "sigmoid")],
)  # fmt: skip
def test_scores_stay_as_they_are_and_channels_become_multiples(tmp_path, model, shape, head):
    run = make_run(tmp_path / "run", model, shape, head)
    trained, larger = run.load("subnets/00"), padded(run, "subnets/00", 4, inputs(shape))
    assert measure(larger.network, shape).parameters > measure(trained.network, shape).parameters
    widths = [len(module.weight) for module in larger.network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert all(width % 4 == 0 for width in widths[:-1])
    x = torch.from_numpy(inputs(shape))
    with torch.inference_mode():
        torch.testing.assert_close(larger(x), trained(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("multiple", [4, 5, 16])
def test_attention_whose_heads_follow_from_its_width_keeps_its_scores(tmp_path, multiple):
    run = make_run(tmp_path / "run", f"{__name__}:viewing", (3, 8, 8), "sigmoid")
    x = torch.from_numpy(inputs((3, 8, 8)))
    larger, trained = padded(run, "subnets/00", multiple, x.numpy()), run.load("subnets/00")
    with torch.inference_mode():
        torch.testing.assert_close(larger(x), trained(x), atol=1e-5, rtol=1e-5)


def test_branches_that_are_concatenated_and_added_to_a_skip_keep_their_scores(tmp_path):
    run = make_run(tmp_path / "run", f"{__name__}:branches", (3, 8, 8), "sigmoid")
    x = torch.from_numpy(inputs((3, 8, 8)))
    larger, trained = padded(run, "subnets/00", 4, x.numpy()), run.load("subnets/00")
    with torch.inference_mode():
        torch.testing.assert_close(larger(x), trained(x), atol=1e-5, rtol=1e-5)


def test_channels_that_are_normalised_together_are_left_alone(tmp_path):
    run = make_run(tmp_path / "run", f"{__name__}:normed", (3, 8, 8), "sigmoid")
    before = run.load("subnets/00")
    same = padded(run, "subnets/00", 8, inputs((3, 8, 8)))
    assert measure(same.network, (3, 8, 8)) == measure(before.network, (3, 8, 8))


@pytest.mark.parametrize(
    ("times", "multiple"),
    [([100, 101, 99, 120], 1), ([100, 80, 79, 120], 4), ([100, 96, 80, 79], 8), ([100, 110, 120, 90], 16)],
)
def test_the_least_padding_that_is_as_fast_as_any(times, multiple):
    assert least_padding(dict(zip(MULTIPLES, times, strict=True))) == multiple


@pytest.fixture(scope="module")
def uneven(wine_source, tmp_path_factory) -> Run:
    """A run of one subnet whose layers keep numbers of channels that are no multiples of anything."""
    folder = tmp_path_factory.mktemp("uneven")
    save_file(models.create("mlp", 3, (13,)).state_dict(), folder / "w.safetensors")
    recipe = Recipe(wine_source, "mlp", assignment="grouped", groups=1, target="channels", amount=0.484, multiple=1,
                    recover_images=0, images=32, batch=32)  # fmt: skip
    return prune_reference(make_plan(recipe, folder / "w.safetensors"), folder / "run")


def test_the_file_that_was_fastest_is_the_one_that_is_written(uneven, monkeypatch):
    timed: dict[str, bytes] = {}

    def microseconds(files, one):
        timed.update(files)
        return dict(zip(files, (100.0, 101.0, 79.0, 80.0), strict=True))

    monkeypatch.setattr("export.networks.microseconds", microseconds)
    exporter = Exporter(uneven, "int8")
    assert exporter.export(exporter.largest).data == timed["8"]
    assert len(set(timed.values())) == len(MULTIPLES)


def test_where_multiples_make_the_same_network_it_is_exported_once(table_run):
    files = Exporter(table_run, "fp32").candidates  # its layers keep multiples of eight channels anyway
    assert files[1] is files[4] is files[8]


@pytest.mark.soak  # a minute of torch
def test_padding_may_be_told(digits_run, tmp_path):
    bundle = export(digits_run, tmp_path / "bundle", padding=16, with_evaluation=False)
    said = bundle.manifest.provenance["precision"]["padding"]
    assert said["multiple"] == 16
    assert set(said["largest_subnet_us"]) == {"1", "16"}
    assert bundle.manifest.subnets[0].macs == digits_run.network("subnets/00").macs  # zeros are no part of the network
    shapes = [tensor.dims for tensor in onnx.load_from_string(bundle.subnet(0)).graph.initializer]
    assert all(dims[0] % 16 == 0 for dims in shapes if len(dims) == 4)
    plain = export(digits_run, tmp_path / "plain", padding=1, with_evaluation=False)
    assert len(plain.subnet(0)) < len(bundle.subnet(0))
    np.testing.assert_allclose(plain.golden().scores, bundle.golden().scores, atol=1e-5)
