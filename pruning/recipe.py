"""Every choice of an offline run in one object: what resumes a run, and what a bundle says of where it comes from."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pruning.criteria import Thresholds
from pruning.training.loop import Precision
from sensai_serve.errors import InputError

TARGETS = ("macs", "parameters", "channels", "threshold", "microseconds")


@dataclass(frozen=True)
class Budget:
    """How much is cut, `Recipe.amount` of the workers' networks and of the recovered one."""

    target: str
    amount: float
    recover_amount: float | None


@dataclass(frozen=True)
class Recipe:
    """All options of ``sensai prune`` that change its result."""

    data: str
    model: str
    assignment: str = "binary"
    redundancy: int | None = None
    groups: int | None = None
    """Number of groups the classes are put into; None: every class is a symbol of its own."""
    offsets: tuple[int, ...] | None = None
    grouping: str = "tsne"
    uneven: bool = False
    """Whether groups may differ by one class where the classes do not divide."""

    criterion: str = "taylor"
    theta1: float = Thresholds.theta1
    theta2: float = Thresholds.theta2
    target: str = "macs"
    """What decides how much is cut: ``macs`` or ``parameters`` to keep, as a fraction of the reference's; ``channels``
    to cut, as a fraction of each layer's; ``threshold``: every channel whose importance is below it; ``microseconds``
    that one input may take in an exported subnet."""
    amount: float = 0.25
    multiple: int = 8
    """Of which every layer keeps a whole number of channels, where it has that many: processors compute that many at a
    time, and fifteen channels take longer than sixteen. Halved where MACs or parameters to keep could not be met; 1:
    any number. Not with ``threshold``."""
    depth: float = 0.0
    """Fraction of the residual blocks to drop, of those that go around an identity skip."""
    profile_images: int = 256
    """Images of each class that are profiled."""

    reconstruct_images: int = 512
    """Images that the layers of a cut network are fitted to before it is retrained; 0: they stay as they were cut."""

    head: str = "sigmoid"
    sampling: str = "balanced"
    distil: float = 1.0
    """Weight of the reference's answers in the loss; the rest is the labels'."""
    temperature: float = 4.0
    """That both networks' logits are divided by for it."""
    views: int | None = None
    """Of each image, by augmentation, that networks are trained on: the reference's answers to them are computed once.
    0: every image is augmented anew each time, and the reference asked each time. None: as many as pay, at most 8."""
    recover_images: int | None = None
    """Image passes that one compact network for all classes gets before workers are made of it; 0: every worker is cut
    from the reference. None: twelve times the training part, at least 40,000."""
    recover_amount: float | None = None
    """`amount` of that network; None: the same, so that workers are specialised from it without a second cut."""
    recover_depth: float | None = None
    """`depth` of that network; None: the same. If less, each worker drops more blocks, those its classes need least."""
    recover_rate: float = 0.01
    steps: int = 1
    """In which that network is cut, each followed by its part of the image passes."""
    recoveries: int = 1
    """Such networks, each trained with a seed of its own: with several, the copies of a class come from different ones
    as far as possible, and err less alike. Each takes all of `recover_images`."""
    images: int | None = None
    """Image passes of each worker's own retraining. None: once the training part, at least 8,000."""
    rate: float = 0.01
    calibration: str = "temperature"
    """``temperature``: each worker's logits are scaled to fit the labels of the validation part; ``none``."""
    batch: int = 128

    validation: float = 0.1
    """Fraction of the training part that choices are made on and nothing is trained on."""
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        _in("target", self.target, TARGETS)
        _in("precision", self.precision, ("auto", "fp32", "bf16"))
        _in("calibration", self.calibration, ("temperature", "none"))
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
        for name in ("distil", "depth"):
            _between(name, getattr(self, name), 0, 1)
        if self.recover_depth is not None:
            _between("recover_depth", self.recover_depth, 0, self.depth)
        for name in ("amount", "recover_amount"):
            if self.target not in ("threshold", "microseconds") and (value := getattr(self, name)) is not None:
                _between(f"{self.target} ({name})", value, 0, 1)
            if self.target == "microseconds" and (value := getattr(self, name)) is not None and not value > 0:
                raise InputError(f"microseconds ({name}) is {value}, expected more than 0")
        if self.target == "microseconds" and self.recover_amount is not None and self.recover_amount < self.amount:
            raise InputError(
                f"microseconds is {self.amount} and recover_amount {self.recover_amount}, expected workers to take less"
            )
        for name in ("rate", "recover_rate"):
            if not 0 < (rate := getattr(self, name)) < math.inf:
                raise InputError(f"{name} is {rate}, expected more than 0")
        if not 0 < self.temperature <= 100:
            raise InputError(f"temperature is {self.temperature}, expected more than 0 and at most 100")
        if not 0 < self.validation < 1:
            raise InputError(
                f"validation is {self.validation}, expected between 0 and 1: a part to choose on, and a rest"
            )
        for name, least in (
            ("images", 0),
            ("views", 0),
            ("recover_images", 0),
            ("steps", 1),
            ("recoveries", 1),
            ("batch", 2),
            ("seed", 0),
            ("multiple", 1),
            ("profile_images", 1),
            ("reconstruct_images", 0),
        ):
            if (number := getattr(self, name)) is not None and number < least:
                raise InputError(f"{name} is {number}, expected at least {least}")

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
        values = {name: _typed(name, value) for name, value in raw.items()}
        for field in dataclasses.fields(cls):
            if field.default is dataclasses.MISSING and field.name not in values:
                raise InputError(
                    f"recipe: {field.name} is missing, expected --{field.name} or a recipe file that has it"
                )
        return cls(**values)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The options in a TOML file, by the names of the fields of `Recipe`; any of them may be missing.

    Raises:
        InputError: it cannot be read, or has an option that there is not or that is of the wrong type.
    """
    try:
        raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}), expected a recipe in TOML") from None
    try:
        return {name: _typed(name, value) for name, value in raw.items()}
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _typed(name: str, value: Any) -> Any:
    """`value`, a list as a tuple and a whole number as a float where the option is one."""
    hints = get_type_hints(Recipe)
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


def _in(name: str, value: str, expected: tuple[str, ...]) -> None:
    if value not in expected:
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(expected)}")


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(f"{name} is {value}, expected {low} to {high}")
