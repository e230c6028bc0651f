"""The recipe: every choice of an offline run that changes its result, kept in the run and in the bundle's provenance.

It imports no torch, since the command line makes its options of it.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pruning.criteria import Thresholds
from sensai_serve.errors import InputError
from sensai_serve.merge.rules import LabelTask
from sensai_serve.options import Flag, NoFlag, Option, Plugins, Range, Section, as_text, check_ranges, options_of

Target = Literal["macs", "parameters", "channels", "threshold", "microseconds"]
Precision = Literal["auto", "fp32", "bf16"]
Optimiser = Literal["auto", "sgd", "adamw"]
MOST_SEED = 2**32 - 1
"""The largest seed that all libraries take."""
BEST_RULE = "auto"
"""What `Recipe.merge` is where the validation part is to choose."""
CUTS: dict[Target, str] = {
    "macs": "Keep this fraction of the reference's multiply-accumulate operations.",
    "parameters": "Or keep this fraction of its parameters.",
    "channels": "Or cut this fraction of each layer's channels.",
    "threshold": "Or cut every channel whose importance is below this.",
    "microseconds": "Or cut until an exported subnet takes this long for one input, on one core.",
}
"""The targets, each with the help of its flag: ``--macs 0.1`` sets `Recipe.target` and `Recipe.amount` together."""


@dataclass(frozen=True)
class Budget:
    """How much is cut, `Recipe.amount` of the workers' networks and of the recovered one."""

    target: str
    amount: float
    recover_amount: float | None


@dataclass(frozen=True)
class Recipe:
    """All options of ``sensai prune`` that change its result.

    A field is an option of the command line, of a recipe file and of the documentation, described only here.
    """

    data: Annotated[
        str, Section("What is pruned"), Flag(metavar="SOURCE"), Plugins("pruning.data", "load", others=True)
    ]
    """Training data: ``digits``, ``wine``, ``breast_cancer``, ``cifar10:DIR``, ``cifar100:DIR``,
    ``folder:DIR[?size=64]``, ``npz:FILE``, ``table:FILE``, ``wav:DIR``, ``jsonl:FILE``, ``datasets:DIR`` or
    ``package.module:callable``."""
    model: Annotated[str, Plugins("pruning.models", "build", others=True)]
    """The reference's network: ``cnn``, ``mlp``, ``resnet20``, ``vgg16`` and the like, or
    ``package.module:callable``."""

    assignment: Annotated[str, Section("Who covers what"), Flag(metavar="binary|grouped|cyclic|full")] = "binary"
    """The code that assigns classes to workers."""
    redundancy: Annotated[int | None, Range(1)] = None
    """Workers that cover each class of a cyclic or full assignment, 3 where neither this nor the offsets are given."""
    groups: int | None = None
    """Number of groups that the classes are put into first; without it every class is a symbol of its own."""
    offsets: tuple[int, ...] | None = None
    """Offsets of the cyclic code, searched for where not given."""
    grouping: Annotated[str, Plugins("pruning.grouping", "group")] = "tsne"
    """How classes are put into groups."""
    uneven: bool = False
    """Groups may differ by one class where the classes do not divide evenly."""
    merge: Annotated[str, Plugins("sensai_serve.merge.rules", "Rule", also=(BEST_RULE,))] = "majority"
    """How the copies of a class become one answer; ``auto`` is the rule that is right most often on the validation
    part."""
    agreement: float = 0.999
    """The fraction of the answers that the wait ``confident`` stops early which equal those of all copies, on the
    validation part."""

    downsample: Annotated[int, Section("How much is cut"), Range(1)] = 1
    """Networks see the mean over this many neighbouring values on each axis of a picture or series: with 2, a fourth of
    the pixels. The reference, which they learn from, still sees all."""
    criterion: Annotated[str, Plugins("pruning.criteria", "importance")] = "taylor"
    """What makes a channel important."""
    theta1: float = Thresholds.theta1
    """Activations below this count as none in the criterion ``hybrid``, and when images are profiled."""
    theta2: float = Thresholds.theta2
    """Channels of a higher mean activation stay, in the criterion ``hybrid``."""
    target: Annotated[Target, NoFlag()] = "macs"
    """What decides how much is cut; the flag of the same name sets this and the amount together."""
    amount: Annotated[float, NoFlag()] = 0.25
    """How much of the target: the fraction of MACs or parameters to keep, the fraction of each layer's channels to cut,
    the importance below which a channel is cut, or the microseconds that one input may take."""
    multiple: Annotated[int, Range(1)] = 8
    """Every layer keeps a multiple of this many channels, which processors compute as fast as one fewer. It is halved
    where MACs or parameters to keep could not be met, and not used with a threshold; 1: any number."""
    depth: Annotated[float, Range(0, 1)] = 0.0
    """Fraction to drop of the residual blocks that an identity skip goes around."""
    profile_images: Annotated[int, Range(1)] = 256
    """Images of each class that are profiled."""
    reconstruct_images: Annotated[int, Range(0)] = 512
    """Images that the layers of a cut network are fitted to before it is retrained; 0: layers stay as they were cut."""

    head: Annotated[str, Section("Retraining"), Plugins("pruning.heads", "head")] = "sigmoid"
    """Output layer and loss of a worker's network."""
    sampling: Annotated[str, Plugins("pruning.sampling", "batches")] = "balanced"
    """How training batches are drawn."""
    labels: Annotated[Literal["data", "reference"], NoFlag()] = "data"
    """Whose labels count: the data's, or the reference's answers, for data without labels (``--labels reference``)."""
    task: LabelTask = "single"
    """What an example has: ``single``, one label; ``multilabel``, a set of them, each decided for itself."""
    distil: Annotated[float, Range(0, 1)] = 1.0
    """Weight of the reference's answers in the loss; the labels have the rest."""
    temperature: float = 4.0
    """Both networks' logits are divided by this for distillation."""
    views: Annotated[int | None, Range(0)] = None
    """Augmented views of each image that the reference answers once, for all networks to learn from; as many as pay, at
    most 8, where not given. 0: new views in every step, each answered anew."""
    recover_images: Annotated[int | None, Range(0)] = None
    """Image passes of the compact network for all classes that workers are made of; twelve epochs, at least 40,000,
    where not given. 0: every worker is cut from the reference."""
    recover_amount: float | None = None
    """The amount of that network; the workers' own where not given, which makes them of it without a second cut."""
    recover_depth: float | None = None
    """The depth of that network; the workers' own where not given. With less, each worker drops more blocks, those that
    its classes need least."""
    recover_rate: float | None = None
    """Peak learning rate of that network; 0.01, or 0.001 with AdamW, where not given."""
    steps: Annotated[int, Range(1)] = 1
    """Steps in which that network is cut, each followed by its part of the image passes."""
    recoveries: Annotated[int, Range(1)] = 1
    """Number of such networks, each trained with a seed of its own on all of the image passes. The copies of a class
    come from different ones as far as possible, and err less alike."""
    images: Annotated[int | None, Range(0)] = None
    """Image passes of each worker's own retraining; one epoch, at least 8,000, where not given."""
    rate: float | None = None
    """Peak learning rate of each worker's own retraining; 0.01, or 0.001 with AdamW, where not given."""
    joint_images: Annotated[int, Range(0)] = 0
    """Image passes that the networks of all workers get together in the end, trained on the merged answer."""
    joint_rate: float | None = None
    """Peak learning rate of that joint retraining; 0.01, or 0.001 with AdamW, where not given."""
    joint_own: float = 0.3
    """Weight of each worker's own loss beside the merged answer's, in the joint retraining."""
    calibration: Literal["temperature", "none"] = "temperature"
    """Whether each worker's logits are scaled to fit the labels of the validation part."""
    batch: Annotated[int, Range(2)] = 128
    """Images in a training step."""

    validation: Annotated[float, Section("All trainings")] = 0.1
    """Fraction of the training part that choices are made on and nothing is trained on."""
    optimiser: Optimiser = "auto"
    """What weights are trained with: ``sgd``, with momentum, or ``adamw``; ``auto`` is AdamW for networks with
    embeddings, attention or layer normalisation, some of which learn nothing by SGD, and SGD for others."""
    precision: Precision = "auto"
    """Arithmetic of training; ``auto`` is bf16 where the device computes it faster."""
    seed: Annotated[int, Range(0, MOST_SEED)] = 0
    """Seed of everything that is drawn."""

    def __post_init__(self) -> None:
        check_ranges(self, InputError)
        if self.steps > 1 and self.recover_images == 0:
            raise InputError(f"steps is {self.steps} and recover_images 0, expected images to recover with in between")
        if self.recoveries > 1 and self.recover_images == 0:
            raise InputError(f"recoveries is {self.recoveries} and recover_images 0, expected images to recover with")
        if self.recover_images == 0:
            for name in ("recover_amount", "recover_depth"):
                if (given := getattr(self, name)) is not None:
                    raise InputError(f"{name} is {given} and recover_images 0, expected images to recover with")
        if self.recover_amount is not None:
            both = f"{self.target} is {self.amount} and recover_amount {self.recover_amount}, expected workers to"
            if self.target in ("channels", "threshold") and self.recover_amount > self.amount:
                raise InputError(f"{both} lose more")
            if self.target in ("macs", "parameters") and self.recover_amount < self.amount:
                raise InputError(f"{both} keep less")
        if self.target == "channels" and (self.recover_amount or 0) >= 1:
            raise InputError(f"channels (recover_amount) is {self.recover_amount}, expected less than 1")
        if self.target == "microseconds" and self.steps > 1:
            raise InputError(
                f"steps is {self.steps} and target microseconds, expected one step: the cut that is measured"
            )
        if self.recover_depth is not None and not 0 <= self.recover_depth <= self.depth:
            raise InputError(f"recover_depth is {self.recover_depth}, expected 0 to {self.depth}")
        for name in ("amount", "recover_amount"):
            value = getattr(self, name)
            if value is None:
                continue
            if not math.isfinite(value):
                raise InputError(f"{self.target} ({name}) is {value}, expected a finite number")
            if self.target == "threshold":
                continue
            if self.target == "microseconds" and not value > 0:
                raise InputError(f"microseconds ({name}) is {value}, expected more than 0")
            if self.target != "microseconds" and not 0 <= value <= 1:
                raise InputError(f"{self.target} ({name}) is {value}, expected 0 to 1")
        if self.target == "microseconds" and self.recover_amount is not None and self.recover_amount < self.amount:
            raise InputError(
                f"microseconds is {self.amount} and recover_amount {self.recover_amount}, expected workers to take less"
            )
        for name in ("theta1", "theta2"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 0")
        for name in ("rate", "recover_rate", "joint_rate"):
            if (rate := getattr(self, name)) is not None and not 0 < rate < math.inf:
                raise InputError(f"{name} is {rate}, expected more than 0")
        if not 0 <= self.joint_own < math.inf:
            raise InputError(f"joint_own is {self.joint_own}, expected at least 0")
        if not 0 < self.agreement <= 1:
            raise InputError(f"agreement is {self.agreement}, expected more than 0 and at most 1")
        if not 0 < self.temperature <= 100:
            raise InputError(f"temperature is {self.temperature}, expected more than 0 and at most 100")
        if not 0 < self.validation < 1:
            raise InputError(
                f"validation is {self.validation}, expected between 0 and 1: a part to choose on, and a rest"
            )

    @property
    def budget(self) -> Budget:
        """As it was asked for."""
        return Budget(self.target, self.amount, self.recover_amount)

    def to_json(self) -> dict[str, Any]:
        """As ``recipe.json`` holds it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Recipe:
        """Read what `to_json` wrote, or what `read_recipe` read.

        Raises:
            InputError: an option is unknown, missing, or of the wrong type.
        """
        values = {name: _typed(cls, name, value) for name, value in raw.items()}
        for field in dataclasses.fields(cls):
            if field.default is dataclasses.MISSING and field.name not in values:
                raise InputError(
                    f"recipe: {field.name} is missing, expected --{field.name} or a recipe file that has it"
                )
        return cls(**values)


def recipe_options(declared: type[Recipe] = Recipe) -> tuple[Option, ...]:
    """The options of ``sensai prune`` that a recipe has: the fields of `declared`, and a flag for each target."""
    found: list[Option] = []
    for option in options_of(declared):
        found.append(option)
        if option.name == "amount":
            shown = {declared.target: as_text(declared.amount)}
            found += [
                Option(cut, text, float, default=shown.get(cut, ""), flag=f"--{cut}", section=option.section)
                for cut, text in CUTS.items()
            ]
    return tuple(found)


def from_flags(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of fields of `Recipe`, of what flags say.

    Args:
        given: values by the names of `recipe_options`; a target's name sets `Recipe.target` and `Recipe.amount`.

    Raises:
        InputError: two targets are given.
    """
    cuts = {name: value for name, value in given.items() if name in CUTS}
    if len(cuts) > 1:
        raise InputError(f"--{' and --'.join(cuts)}: expected one of them")
    cut = next(({"target": name, "amount": amount} for name, amount in cuts.items()), {})
    return cut | {name: value for name, value in given.items() if name not in CUTS}


def read_recipe(path: str | Path, declared: type[Recipe] = Recipe) -> dict[str, Any]:
    """The options in a TOML file, by the names of the fields of `declared`; any of them may be missing.

    Raises:
        InputError: it cannot be read, or has an option that there is not or that is of the wrong type.
    """
    try:
        raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}), expected a recipe in TOML") from None
    try:
        return {name: _typed(declared, name, value) for name, value in raw.items()}
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _typed(declared: type[Recipe], name: str, value: Any) -> Any:
    """`value`, a list as a tuple and a whole number as a float where the option is one."""
    hints = get_type_hints(declared)
    if name not in hints:
        raise InputError(f"recipe: there is no option {name!r}, expected one of {', '.join(sorted(hints))}")
    kinds = get_args(hints[name]) or (hints[name],)
    if value is None and type(None) in kinds:
        return None
    if isinstance(value, list | tuple) and all(type(item) is int for item in value) and tuple[int, ...] in kinds:
        return tuple(value)
    if float in kinds and type(value) is int:
        return float(value)
    if type(value) in kinds or (get_origin(hints[name]) is Literal and isinstance(value, str)):
        return value
    expected = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        tuple[int, ...]: "a list of whole numbers",
    }
    known = next((text for kind, text in expected.items() if kind in kinds), "a text")
    raise InputError(f"recipe: {name} is {value!r}, expected {known}")
