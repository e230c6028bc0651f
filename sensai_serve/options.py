"""Options described once, where they are declared; the command line, files, the environment and docs are made of it.

A frozen dataclass (the recipe) or a settings model declares a field with a type, a default and a docstring below it.
What those do not say stands in the field's ``Annotated``: `Flag`, `NoFlag`, `Prefix`, `Section`, `Range`,
`Plugins`. `options_of` reads a dataclass; ``serving.settings`` reads its models. Only the standard library is used, so
that ``--help`` stays light.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from sensai_serve import plugins

_Kind = type[bool] | type[int] | type[float] | type[str] | type[Path]


@dataclass(frozen=True)
class Flag:
    """How an option is spelled on the command line, where that is not its name with dashes."""

    name: str = ""
    """The spelling with its dashes; empty: as usual."""
    metavar: str = ""
    """What stands for the value in ``--help``; empty: the values where they are listed, else the type."""
    text: bool = False
    """Its value is text, which the field's own validator reads."""


@dataclass(frozen=True)
class NoFlag:
    """An option that the command line sets in another way, or not at all."""


@dataclass(frozen=True)
class Prefix:
    """What stands before the names of a group's options in their flags, say ``max-``."""

    text: str


@dataclass(frozen=True)
class Section:
    """The heading under which this option and those that follow it are shown."""

    title: str


@dataclass(frozen=True)
class Range:
    """The least and the greatest value that an option takes, both included."""

    least: float
    most: float = float("inf")

    def expected(self) -> str:
        """What a message says is expected."""
        return f"{self.least:g} to {self.most:.15g}" if self.most < float("inf") else f"at least {self.least:g}"


@dataclass(frozen=True)
class Plugins:
    """An option that names a plugin: its values are the files of a package, entry points, and callables."""

    package: str
    attribute: str
    """What a plugin's file calls the thing."""
    others: bool = False
    """It takes other names too, which only the plugins know."""
    also: tuple[str, ...] = ()
    """Names that mean something else than a plugin."""


@dataclass(frozen=True)
class Option:
    """One option, whatever declares it."""

    name: str
    """What a file and the provenance call it; a group's name and a dot stand before it."""
    text: str
    """What it is, in a sentence, with code in double backticks."""
    kind: _Kind = str
    """The type of one value."""
    several: bool = False
    """It is a list. A flag of a list of texts is given several times, one of a list of numbers takes 0,1,3."""
    default: str = ""
    """As text; empty for none."""
    required: bool = False
    """There is no default."""
    flag: str | None = None
    """Its spelling on the command line."""
    metavar: str = ""
    """What stands for its value in ``--help``."""
    section: str = ""
    """The heading it is shown under."""
    variable: str = ""
    """The variable of the environment that sets it."""
    plugins: str = ""
    """The package whose plugins it names."""


def options_of(declared: type[Any]) -> tuple[Option, ...]:
    """The options that a dataclass declares, in the order of its fields.

    Args:
        declared: a dataclass whose fields have docstrings below them.
    """
    texts, hints = attribute_docs(declared), get_type_hints(declared, include_extras=True)
    found: list[Option] = []
    for field in dataclasses.fields(declared):
        annotation, marks = split(hints[field.name])
        default = "" if field.default is dataclasses.MISSING else field.default
        option = make_option(field.name, annotation, marks, default, texts.get(field.name, ""))
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        section = option.section or (found[-1].section if found else "")
        found.append(dataclasses.replace(option, required=required, section=section))
    return tuple(found)


def make_option(
    name: str, annotation: Any, marks: Iterable[Any], default: Any, text: str, *, prefix: str = ""
) -> Option:
    """One option from what its field declares.

    Args:
        name: the field's name, a group's before it with a dot.
        annotation: its type without ``Annotated``.
        marks: what stands in ``Annotated`` beside the type; what is not of this module is passed over.
        default: the field's default; None for none.
        text: the field's docstring.
        prefix: what stands before the field's name in its flag, say ``max-``.
    """
    kind, several, choices = _value(annotation)
    own = name.rpartition(".")[2]
    flag: str | None = f"--{prefix}{(own.removesuffix('s') if several and kind is str else own).replace('_', '-')}"
    metavar, section, package = "|".join(choices), "", ""
    for mark in marks:
        if isinstance(mark, Flag):
            flag, metavar, kind = mark.name or flag, mark.metavar or metavar, str if mark.text else kind
        elif isinstance(mark, NoFlag):
            flag = None
        elif isinstance(mark, Section):
            section = mark.title
        elif isinstance(mark, Plugins):
            metavar = metavar or "NAME"
            package = "" if mark.others else mark.package
    text, shown = " ".join(text.split()), as_text(default)
    return Option(name, text, kind, several, shown, flag=flag, metavar=metavar, section=section, plugins=package)


def split(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without its ``Annotated``, and what stands in there beside it."""
    if get_origin(annotation) is not Annotated:
        return annotation, ()
    plain, *marks = get_args(annotation)
    return plain, tuple(marks)


def as_text(value: Any) -> str:
    """A value as a table shows it: numbers of a list with commas between them, other items with spaces; "" for None."""
    if value is None:
        return ""
    if isinstance(value, tuple | list):
        return ("," if all(isinstance(item, int | float) for item in value) else " ").join(map(str, value))
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def plain(text: str) -> str:
    """A docstring as a terminal shows it: one line, without backticks."""
    return " ".join(text.replace("``", "").split())


def attribute_docs(declared: type[Any]) -> dict[str, str]:
    """The docstring below each field of a class and of its bases, from their source; none where that is not at hand."""
    texts: dict[str, str] = {}
    for base in reversed(declared.__mro__[:-1]):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for field, below in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                text = below.value
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    texts[field.target.id] = inspect.cleandoc(text.value)
    return texts


def check_ranges(declared: Any, fail: type[Exception]) -> None:
    """Hold the fields of a dataclass instance against their types' choices and their `Range`.

    Raises:
        fail: the first one that is not within.
    """
    hints = get_type_hints(type(declared), include_extras=True)
    for field in dataclasses.fields(declared):
        annotation, marks = split(hints[field.name])
        value = getattr(declared, field.name)
        choices = _value(annotation)[2]
        if choices and value is not None and value not in choices:
            raise fail(f"{field.name} is {value!r}, expected one of {', '.join(choices)}")
        for mark in marks:
            if isinstance(mark, Range) and value is not None and not mark.least <= value <= mark.most:
                raise fail(f"{field.name} is {value}, expected {mark.expected()}")


def import_plugins(declared: Any, *names: str) -> None:
    """Import the plugins that the fields of a dataclass instance name, so that what is wrong with one is said early.

    Args:
        declared: the instance.
        names: the fields; all where there are none.

    Raises:
        PluginError: one that there is not, or that cannot be imported.
    """
    hints = get_type_hints(type(declared), include_extras=True)
    for field in dataclasses.fields(declared):
        if names and field.name not in names:
            continue
        for mark in split(hints[field.name])[1]:
            if isinstance(mark, Plugins):
                name = str(getattr(declared, field.name)).partition("?")[0]
                callable_given = ":" in name and name.partition(":")[0] not in plugins.available(mark.package)
                if callable_given or not (mark.others or name in mark.also):
                    plugins.find(mark.package, name, mark.attribute)


def _value(annotation: Any) -> tuple[_Kind, bool, tuple[str, ...]]:
    """The type of one value, whether there are several, and the values where they are listed."""
    if get_origin(annotation) is Annotated:
        return _value(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return _value(next(part for part in get_args(annotation) if part is not type(None)))
    if get_origin(annotation) is Literal:
        return str, False, tuple(map(str, get_args(annotation)))
    if get_origin(annotation) in (tuple, list):
        return _value(get_args(annotation)[0])[0], True, ()
    return annotation if annotation in (bool, int, float, Path) else str, False, ()
