"""Networks tried out before any work: what is taken can be cut, saved, trained and exported; the rest is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from export.trial import try_export
from pruning import models
from pruning.pipeline.prune import prune_reference
from pruning.pipeline.rehearsal import STAGE, rehearse
from pruning.planning.plan import make_plan
from pruning.recipe import Recipe
from pruning.selection.source import reference_source
from sensai_serve.errors import ModelError
from sensai_serve.progress import silent

SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent)


def source_of(name: str, folder: Path):
    torch.manual_seed(0)
    torch.save(models.create(f"unusual:{name}", 10, SHAPE).state_dict(), folder / "w.pt")
    recipe = Recipe(
        "digits",
        f"unusual:{name}",
        assignment="grouped",
        groups=2,
        grouping="random",
        amount=0.5,
        recover_images=64,
        images=64,
        batch=32,
        profile_images=4,
        reconstruct_images=32,
    )
    return reference_source(make_plan(recipe, folder / "w.pt", threads=1), silent)


@pytest.mark.parametrize(
    "name",
    [
        "tied", "two_names", "weight_normed", "spectral_normed", "masked", "auxiliary", "Cosine", "Dict", "Summed",
        "Recurrent",
    ],
)  # fmt: skip
def test_what_passes_is_pruned_saved_and_trained(name, tmp_path):
    source = source_of(name, tmp_path)
    rehearse(source, None)
    run = prune_reference(source.plan, tmp_path / "run")
    for worker in range(2):
        assert run.network(run.folder(worker)).macs <= source.plan.size.macs / 2
        with torch.no_grad():
            assert run.load(run.folder(worker))(torch.zeros(2, *SHAPE)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Unsaved", "Unsaved answers otherwise once it is saved and read back"),
    ],
)
def test_what_would_fail_after_the_training_is_refused_before_it(name, line, tmp_path):
    source = source_of(name, tmp_path)
    with pytest.raises(ModelError, match=line) as caught:
        rehearse(source, None)
    assert "\n" not in str(caught.value)


def test_export_is_tried_last_as_a_step_of_the_stage(tmp_path):
    source, seen = source_of("Branching", tmp_path), []
    with pytest.raises(ModelError, match="ONNX export cannot express"):
        rehearse(source, try_export, lambda *step: seen.append(step))
    assert seen == [(STAGE, done, 5) for done in range(4)]
