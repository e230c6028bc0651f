"""Fixtures: finished runs and a bundle, from digits and from a table, made once for all tests of export."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from export.assemble import export
from pruning.pipeline import prune as pipeline
from pruning.pipeline.plan import make_plan
from pruning.recipe import Recipe
from pruning.run import Run
from pruning.training.reference import train
from sensai_serve.bundle import Bundle

DIGITS = Recipe("digits", "cnn", assignment="cyclic", groups=5, redundancy=3, recover_images=6000, images=1500)
BREAST_CANCER = Recipe("breast_cancer", "mlp", amount=0.4, recover_images=2000, images=500, batch=32)


@pytest.fixture(scope="session")
def digits_weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "digits.safetensors"
    save_file(train("digits", "cnn", epochs=5).model.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory, digits_weights) -> Run:
    return pipeline.prune(make_plan(DIGITS, digits_weights), tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="session")
def digits_bundle(tmp_path_factory, digits_run) -> Bundle:
    return export(digits_run, tmp_path_factory.mktemp("bundles") / "digits")


@pytest.fixture(scope="session")
def table_run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("table")
    save_file(
        train("breast_cancer", "mlp", epochs=20, batch=32, rate=0.05).model.state_dict(), folder / "w.safetensors"
    )
    return pipeline.prune(make_plan(BREAST_CANCER, folder / "w.safetensors"), folder / "run")
