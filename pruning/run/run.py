"""The run directory: everything that pruning writes, as data only; export reads it.

RUN/recipe.json             every option, and digests of the data and the weights: another recipe is refused
RUN/task.json               labels, input, who covers what, and what the budget came to
RUN/answers.npz             the reference's answers to both parts of the data, where they are the labels
RUN/reference/              a network: network.json (what was cut, classes, head) and weights.safetensors
RUN/teacher-logits/0.npy .. the reference's logits for views of the training images (`pruning.pipeline.teacher`)
RUN/recovering/1/ ...       networks on the way to the next, where it is cut in steps (recovering-1/1/ to recovered-1/)
RUN/recovered/              the compact network for all classes, where the recipe asks for one
RUN/recovered-1/ ...        further ones, where it asks for several
RUN/apart/00/ ...           each worker's network before the joint training, where the recipe asks for that
RUN/subnets/00/ ...         each worker's network, and validation.npy, its scores of the validation part

A network appears whole or not at all, so a killed run continues with the next one.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pruning import data, heads, models
from pruning.cutting.blocks import remove_blocks
from pruning.cutting.cut import apply_cut
from pruning.cutting.graph import output_layer
from pruning.cutting.size import Size
from pruning.data import Dataset, Labels
from pruning.heads import Subnet, replace_output
from pruning.limits import enough_disk
from pruning.recipe import Budget, Recipe
from pruning.run.json_files import read_json, write_json
from pruning.run.network import WEIGHTS, Network, finished, read_network, read_validation_scores, save_network
from sensai_serve.assignment import Assignment
from sensai_serve.bundles import atomic_directory, refuse_existing
from sensai_serve.errors import DataError, InputError, OutputExistsError
from sensai_serve.preprocess import Floats, InputSpec

RECIPE = "recipe.json"
TASK = "task.json"
ANSWERS = "answers.npz"
REFERENCE = "reference"
RECOVERED = "recovered"
"""Name of the first, or only, compact network; see `pruning.planning.stages.recovered`."""


@dataclass(frozen=True)
class Run:
    """An opened run directory."""

    path: Path
    recipe: Recipe
    digests: dict[str, str]
    """SHA-256 of the ``data`` and of the ``weights``. A run is of the same recipe if these are the same, whatever the
    paths."""
    labels: tuple[str, ...]
    spec: InputSpec
    assignment: Assignment
    budget: Budget
    """The recipe's budget; one in microseconds as the fraction of channels that it came to when the run was begun."""
    inputs: tuple[InputSpec, ...] = ()
    """What the networks take, where that is not the FP32 tensor of `spec`; see `pruning.data.Dataset`."""

    @property
    def network_inputs(self) -> tuple[InputSpec, ...]:
        """What the networks take: `inputs`, or the one of `spec`."""
        return self.inputs or (self.spec,)

    def create(self, reference: nn.Module, size: Size, dataset: Dataset) -> None:
        """Make the directory, with the recipe, the task and the reference in it.

        Args:
            reference: the network that is pruned.
            size: its size.
            dataset: the data, whose labels are kept if they are the reference's answers.

        Raises:
            OutputExistsError: the path holds something already.
            WorkError: the disk is full.
        """
        assignment = {
            "kind": self.assignment.kind,
            "rows": self.assignment.rows,
            "offsets": self.assignment.offsets,
            "symbols": self.assignment.symbols,
        }
        task = {
            "labels": self.labels,
            "input": self.spec.to_json(),
            **({"inputs": [spec.to_json() for spec in self.inputs]} if self.inputs else {}),
            "assignment": assignment,
            "budget": vars(self.budget),
        }
        every = tuple(range(len(self.labels)))
        with enough_disk(self.path), atomic_directory(self.path) as temporary:
            write_json(temporary / RECIPE, {"schema": 1, "recipe": self.recipe.to_json(), "digests": self.digests})
            write_json(temporary / TASK, task)
            network = Network(every, heads.of_reference(self.recipe.task), {}, size.macs, size.parameters)
            save_network(temporary / REFERENCE, network, reference)
            if self.recipe.labels == "reference":
                buffer = io.BytesIO()
                np.savez_compressed(buffer, y=dataset.y, y_test=dataset.y_test)
                (temporary / ANSWERS).write_bytes(buffer.getvalue())

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Read a run directory.

        Raises:
            InputError: there is no run directory at `path`, or it is damaged.
        """
        path = Path(path)
        if not (path / RECIPE).is_file():
            raise InputError(f"{path} is no run directory, expected one that `sensai prune --out` made")
        recipe, task = read_json(path / RECIPE), read_json(path / TASK)
        try:
            assignment, asked = task["assignment"], Recipe.from_json(recipe["recipe"])
            return cls(
                path,
                asked,
                dict(recipe["digests"]),
                tuple(task["labels"]),
                InputSpec.from_json(task["input"]),
                Assignment(
                    tuple(map(tuple, assignment["rows"])),
                    len(task["labels"]),
                    assignment["kind"],
                    tuple(assignment["offsets"]),
                    tuple(map(tuple, assignment["symbols"])),
                ),
                Budget(**task["budget"]) if "budget" in task else asked.budget,
                tuple(map(InputSpec.from_json, task.get("inputs", ()))),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: {RECIPE} or {TASK} is damaged ({error})") from None

    @classmethod
    def resume(cls, path: str | Path, recipe: Recipe, digests: dict[str, str]) -> Run | None:
        """The run at `path` if it is of this recipe, wherever the data lies now; None if nothing is there.

        Raises:
            OutputExistsError: a run of another recipe, or something else, is there.
        """
        path = Path(path)
        if not (path / RECIPE).is_file():
            refuse_existing(path)
            return None
        run = cls.open(path)
        there, asked = (
            one.to_json() | {f"data?{key}": value for key, value in data.changes_of(one.data).items()} | known
            for one, known in ((run.recipe, run.digests), (recipe, digests))
        )
        if different := [key for key in there | asked if there.get(key) != asked.get(key)]:
            key = different[0]
            raise OutputExistsError(
                f"{path} is a run of another recipe ({key} is {_short(there.get(key))} there, {_short(asked.get(key))} "
                "here), expected the same or another directory"
            )
        return run

    @cached_property
    def dataset(self) -> Dataset:
        """The data of the recipe, with the reference's answers as its labels where the recipe says so.

        Raises:
            DataError: the data is missing, or is no longer what the run was made with.
            InputError: the answers are missing or damaged.
        """
        recipe, unlabelled = self.recipe, self.recipe.labels == "reference"
        dataset = data.load(recipe.data, seed=recipe.seed, unlabelled=unlabelled, task=recipe.task)
        if dataset.digest() != self.digests["data"]:
            raise DataError(f"{self.recipe.data}: not the data that {self.path} was made with")
        self.check_inputs(dataset)
        return self.with_answers(dataset)

    def with_answers(self, dataset: Dataset) -> Dataset:
        """The run's data with the reference's answers that it was begun with; as it is where these are not its labels.

        Raises:
            InputError: the answers are missing or damaged.
        """
        if self.recipe.labels != "reference":
            return dataset
        try:
            with np.load(self.path / ANSWERS, allow_pickle=False) as file:
                return dataset.answered(file["y"], file["y_test"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{self.path / ANSWERS} is damaged ({error})") from None

    def check_inputs(self, dataset: Dataset) -> None:
        """Check that networks take what this run's networks take: the same arrays may be normalised otherwise.

        Raises:
            DataError: they take something else.
        """
        if not data.same_inputs(dataset.network_inputs, self.network_inputs):
            raise DataError(
                f"{dataset.name}: its inputs are normalised or shaped otherwise than those that {self.path} was made "
                f"with, expected the options behind the question mark of {self.recipe.data} (?mean=...&std=...)"
            )

    @property
    def split(self) -> tuple[Labels, Labels]:
        """Indices of the training part: those to train on, and those to validate on."""
        return data.split(self.dataset.y, self.recipe.validation, self.recipe.seed)

    def folder(self, worker: int) -> str:
        """Name of a worker's network."""
        return f"subnets/{worker:0{max(2, len(str(self.assignment.n_workers - 1)))}d}"

    def apart(self, worker: int) -> str:
        """Name of a worker's network as it was trained by itself: the final one where nothing is trained jointly."""
        return self.folder(worker).replace("subnets", "apart") if self.recipe.joint_images else self.folder(worker)

    def has(self, name: str) -> bool:
        """Whether the network of that name is finished."""
        return finished(self.path / name)

    def save(self, name: str, network: Network, model: nn.Module, validation: Floats | None = None) -> None:
        """Keep a network, whole or not at all.

        Raises:
            WorkError: the disk is full.
        """
        with enough_disk(self.path / name), atomic_directory(self.path / name) as temporary:
            save_network(temporary, network, model, validation)

    def network(self, name: str) -> Network:
        """Read ``network.json`` of the network of that name.

        Raises:
            InputError: it is not finished, or damaged.
        """
        if not self.has(name):
            raise InputError(f"{self.path}: {name} is not finished, expected `sensai prune` to have run to its end")
        return read_network(self.path / name)

    def load(self, name: str) -> Subnet:
        """Rebuild the network of that name: the recipe's model, blocks and channels cut again, the weights loaded.

        Raises:
            InputError: it is not finished, or damaged.
        """
        network = self.network(name)
        shape = self.spec.shape
        model = models.create(self.recipe.model, len(self.labels), shape, self.inputs)
        models.make_plain(model)
        if name != REFERENCE:
            model = models.downsample(model, self.recipe.downsample, shape, self.inputs)
        output = output_layer(model, shape)
        if network.removed:
            model = remove_blocks(model, network.removed, shape)
        model = apply_cut(model, network.cut, shape)
        head = heads.find(network.head, self.recipe.task)
        if name != REFERENCE:  # the reference keeps its own output layer
            replace_output(model, output, head, network.classes)
        models.load_weights(model, self.path / name / WEIGHTS)
        return Subnet(model, head).eval()

    def validation_scores(self, worker: int) -> Floats:
        """Scores [V, k] that a worker's network gave the validation part when it was made.

        Raises:
            InputError: they are missing or damaged.
        """
        return read_validation_scores(self.path / self.folder(worker))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "..."
