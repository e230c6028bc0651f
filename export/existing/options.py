"""The options of ``sensai bundle``: what the files take, what they give, and how their answers are merged.

Only light imports: the command line makes its options of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from sensai_serve.errors import InputError
from sensai_serve.merge.rules import LabelTask
from sensai_serve.options import Flag, Option, Plugins, Range, Section, check_ranges, options_of
from sensai_serve.text_spec import TooLong

BEST_RULE = "auto"


@dataclass(frozen=True)
class BundleOptions:
    """Every choice that can be made beside the files, their classes and the data.

    A field is an option of the command line and of the documentation, described only here.
    """

    replicas: Annotated[int, Section("Who covers what"), Range(1)] = 1
    """Workers that run each file. With several the first answer wins: a slow or dead one costs nothing, a wrong one is
    not outvoted. With ``--wait decided`` and three, it is, where the others are sure."""
    merge: Annotated[str | None, Plugins("sensai_serve.merge.rules", "Rule", also=(BEST_RULE,))] = None
    """How the copies of a class become one answer. ``auto`` is the rule that is right most often, for which labelled
    data is needed; where not given: ``auto`` for different files with labelled data, ``mean`` for them without, and
    ``majority`` for replicas and for files of some classes each."""
    task: LabelTask = "single"
    """What the files give: ``single``, one label of an input; ``multilabel``, scores of each label by itself, any
    number of which may be right."""
    wait: Literal["first", "decided", "quorum", "all"] | None = None
    """What requests wait for where neither they nor the server say otherwise: ``first`` for replicas of one file,
    ``confident`` for a cascade, ``decided`` for everything else, where not given."""
    cascade: bool = False
    """Ask the files in the order of their cost, the next only where those before are not sure; needs labelled data."""
    loss: Annotated[float, Range(0, 100)] = 0.1
    """Points of accuracy that a cascade may lose against the best file alone."""
    calibrate: bool = True
    """Scale each file's log odds by a temperature fitted to labelled data, so that their scores mean the same."""

    shape: Annotated[tuple[int, ...] | None, Section("What the files take"), Flag(metavar="3,224,224")] = None
    """Shape of one input, without the batch axis, where a file leaves it open."""
    maximum: Annotated[tuple[int, ...] | None, Flag(metavar="128")] = None
    """The largest size of each axis that files leave open and requests choose, such as the length of a text: one for
    all, or one for each. Such axes have one size for ever where ``--shape`` says it."""
    long_texts: TooLong = "refuse"
    """What becomes of a text of more tokens than the files take, with a tokenizer: it is refused, and the maximum said,
    or its first tokens are taken."""
    layout: Literal["auto", "NCHW", "NHWC"] = "auto"
    """Order of the axes of a picture, where the shape does not tell."""
    image: Literal["auto", "RGB", "L", "no"] = "auto"
    """Whether inputs are pictures, so that image files can be sent: what the data says; without data, where the files
    take bytes of 1 or 3 channels."""
    scale: Annotated[float | None, Flag(metavar="NUMBER")] = None
    """Raw numbers are multiplied by this first; 1/255 where only the mean or the deviation is given."""
    mean: Annotated[tuple[float, ...] | None, Flag(metavar="0.485,0.456,0.406")] = None
    """Subtracted then, one number or one for each channel."""
    std: Annotated[tuple[float, ...] | None, Flag(metavar="0.229,0.224,0.225")] = None
    """Divided by then. Where none of the three is given, labelled data shows what the files expect."""
    resize: Annotated[tuple[int, ...] | None, Flag(metavar="256|H,W")] = None
    """Pictures are resized to this height and width, or to this shorter side; the files' size where not given."""
    crop: Annotated[tuple[int, ...] | None, Flag(metavar="H,W")] = None
    """Height and width that are cut from the centre after that."""

    output: Annotated[tuple[str, ...], Section("What the files give"), Flag("--output", metavar="NAME")] = ()
    """The output that scores come from, where a file has several; several are taken side by side."""
    activation: Literal["auto", "softmax", "sigmoid", "none"] = "auto"
    """What makes scores in [0, 1] of a file's numbers; found by trying."""

    limit: Annotated[int | None, Section("Data"), Range(1)] = None
    """Inputs of the data that are looked at, drawn at random; all where not given."""
    seed: Annotated[int, Range(0)] = 0
    """Of everything that is drawn."""

    def __post_init__(self) -> None:
        check_ranges(self, InputError)
        if self.cascade and (self.replicas > 1 or self.wait is not None):
            raise InputError(
                "a cascade asks one worker after the other, expected neither --replicas nor --wait with it"
            )
        if self.task == "multilabel" and (self.cascade or self.activation == "softmax"):
            what = "a cascade asks" if self.cascade else "softmax is for files that say"
            raise InputError(f"{what} which one class is right, expected none for sets of labels (--task multilabel)")
        if self.maximum is not None and (self.shape is not None or any(size < 1 for size in self.maximum)):
            raise InputError(f"maximum is {list(self.maximum)}, expected sizes of 1 or more, and no --shape beside it")
        if self.resize is not None and len(self.resize) not in (1, 2):
            raise InputError(f"resize is {list(self.resize)}, expected a shorter side, or a height and a width")
        if self.crop is not None and len(self.crop) != 2:
            raise InputError(f"crop is {list(self.crop)}, expected a height and a width")

    @property
    def normalised(self) -> bool:
        """Whether it is said how raw numbers become what the files take."""
        return self.scale is not None or self.mean is not None or self.std is not None


def make_options(given: Mapping[str, Any]) -> BundleOptions:
    """Options of keyword arguments; one value stands for a list of one.

    Raises:
        InputError: there is no such option, or its value makes no sense.
    """
    known = [field.name for field in fields(BundleOptions)]
    if unknown := sorted(set(given) - set(known)):
        raise InputError(f"there is no option {unknown[0]!r}, expected {', '.join(known)}")
    listed = {name for name in known if isinstance(given.get(name), list)}
    lists = ("shape", "maximum", "mean", "std", "resize", "output")
    single = {name for name in lists if isinstance(given.get(name), int | float | str)}
    values: dict[str, Any] = dict(given)
    values |= {name: tuple(given[name]) for name in listed} | {name: (given[name],) for name in single}
    return BundleOptions(**values)


def bundle_options() -> tuple[Option, ...]:
    """The options, for the command line and the documentation."""
    return options_of(BundleOptions)
