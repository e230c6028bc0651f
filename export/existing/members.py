"""What a user names: files, and which class each of their outputs is; on the command line, or in a mapping file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import onnx

from export.existing.file_outputs import Activation
from export.existing.given_file import Source
from sensai_serve.errors import InputError

NO_CLASS = "-"
"""Stands for a number of a file's output that belongs to no class, such as "none of these"."""
Classes = Sequence[str | int]
_KEYS = ("file", "classes", "output", "activation")


@dataclass(frozen=True)
class Member:
    """One file, which one worker or several replicas run."""

    source: Source
    name: str
    """What messages call it."""
    classes: tuple[str | int, ...] | None = None
    """The class of each number that it gives: a label, an index, or `NO_CLASS`. None: all, in the labels' order."""
    outputs: tuple[str, ...] = ()
    """The outputs that its scores come from; found where there are none."""
    activation: Activation | None = None
    """What makes scores of its numbers; found by trying where None."""


def parse_member(text: str) -> Member:
    """Read ``FILE`` or ``FILE=class,class`` of the command line."""
    path, equals, classes = text.rpartition("=")
    if not equals or Path(text).exists():
        return Member(Path(text), text)
    return Member(Path(path), path, tuple(part.strip() for part in classes.split(",")))


def read_mapping(path: Path) -> tuple[Member, ...]:
    """Read a mapping file: TOML with a table ``[[models]]`` for each file, of ``file``, ``classes`` and the like.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML file ({error})") from None
    models = raw.get("models")
    if set(raw) != {"models"} or not isinstance(models, list) or not models:
        raise InputError(f"{path} holds {', '.join(raw) or 'nothing'}, expected a table [[models]] for each file")
    return tuple(_from_table(path, number, table) for number, table in enumerate(models))


def members_of(models: Iterable[Source | tuple[Source, Classes] | Member]) -> tuple[Member, ...]:
    """What a caller from Python names: paths, bytes or models, each alone or with its classes.

    Raises:
        InputError: one is nothing of the kind.
    """
    made = list[Member]()
    for number, model in enumerate(models):
        if isinstance(model, Member):
            made.append(model)
            continue
        source, classes = model if isinstance(model, tuple) else (model, None)
        if not isinstance(source, str | Path | bytes | onnx.ModelProto):
            raise InputError(f"model {number} is a {type(source).__name__}, expected a path, bytes or an ONNX model")
        name = str(source) if isinstance(source, str | Path) else f"model {number}"
        made.append(Member(source, name, None if classes is None else tuple(classes)))
    return tuple(made)


def class_indices(member: Member, labels: Sequence[str]) -> tuple[int | None, ...] | None:
    """The class index of each number that a member gives, None for one of no class; None where it names no classes.

    Raises:
        InputError: it names something that is no class, a class twice, or none at all.
    """
    if member.classes is None:
        return None
    places = {label: at for at, label in enumerate(labels)}
    found = list[int | None]()
    for named in member.classes:
        at = places.get(named) if isinstance(named, str) else named
        if at is None and isinstance(named, str) and named.isdecimal():
            at = int(named)
        if named != NO_CLASS and (at is None or not 0 <= at < len(labels)):
            some = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
            raise InputError(f"{member.name} is of class {named!r}, expected one of {some}; or {NO_CLASS} for none")
        found.append(at)
    classes = [at for at in found if at is not None]
    if not classes or len(set(classes)) != len(classes):
        raise InputError(f"{member.name} names {'a class twice' if classes else 'no class'}, expected each once")
    return tuple(found)


def _from_table(path: Path, number: int, table: Any) -> Member:
    where = f"{path}: models[{number}]"
    if not isinstance(table, Mapping) or not isinstance(table.get("file"), str):
        raise InputError(f"{where} has no file, expected file = 'model.onnx'")
    if unknown := sorted(set(table) - set(_KEYS)):
        raise InputError(f"{where} has {unknown[0]!r}, expected {', '.join(_KEYS)}")
    classes, output, activation = (table.get(key) for key in _KEYS[1:])
    output = [output] if isinstance(output, str) else output
    if classes is not None and not _is_list(classes, str | int):
        raise InputError(f"{where}.classes is {classes!r}, expected a list of labels")
    if output is not None and not _is_list(output, str):
        raise InputError(f"{where}.output is {output!r}, expected a name or a list of names")
    if activation not in (None, *get_args(Activation)):
        raise InputError(f"{where}.activation is {activation!r}, expected {', '.join(get_args(Activation))}")
    file = path.parent / table["file"]
    return Member(file, str(file), None if classes is None else tuple(classes), tuple(output or ()), activation)


def _is_list(value: Any, kind: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, kind) for item in value)
