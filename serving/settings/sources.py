"""Where settings come from: a flag, the environment, a file or the default; which of them wins.

The environment sets a field by ``SENSAI_FIELD`` and one of a group by ``SENSAI_GROUP__FIELD``, for example
``SENSAI_LIMITS__BODY_BYTES=1000000``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from pydantic_settings import EnvSettingsSource, SettingsError

from sensai_serve.errors import InputError
from sensai_serve.options import Option, Prefix, Section, as_text, make_option, plain
from serving.engine.options import Group
from serving.settings.settings import Settings

Origin = Literal["flag", "environment", "file", "default"]


@dataclass(frozen=True)
class Described:
    """One setting, its value and the source of that value."""

    name: str
    value: str
    origin: Origin
    help: str


def settings_options(
    declared: type[BaseModel] = Settings, group: str = "", section: str = "", prefix: str = ""
) -> tuple[Option, ...]:
    """Every setting as an option of ``sensai serve``, in the order of the fields.

    Args:
        declared: `Settings`, or a group of it.
        group: what stands before the names of the group's settings.
        section: the heading they are shown under.
        prefix: what stands before their flags.
    """
    found: list[Option] = []
    for name, field in declared.model_fields.items():
        section = next((mark.title for mark in field.metadata if isinstance(mark, Section)), section)
        kind, default = field.annotation, field.get_default(call_default_factory=True)
        if isinstance(kind, type) and issubclass(kind, Group):
            own = next((mark.text for mark in field.metadata if isinstance(mark, Prefix)), "")
            found += settings_options(kind, f"{group}{name}.", section, own)
            continue
        option = make_option(group + name, kind, field.metadata, default, field.description or "", prefix=prefix)
        variable = Settings.model_config["env_prefix"] + (group + name).upper().replace(".", "__")
        found.append(replace(option, section=section, variable=variable))
    return tuple(found)


def load_settings(file: Path | None = None, /, **flags: Any) -> Settings:
    """Load the settings: a flag wins over the environment, that over the file, that over the default.

    Args:
        file: a TOML file, with groups as tables.
        flags: the values of the command line by field, groups as dictionaries; None where it gives none.

    Raises:
        InputError: a value is not valid, or the file cannot be read.
    """
    try:
        merged: dict[str, Any] = {}
        for _, source in _sources(file, flags):
            merged = _updated(merged, source)
        return Settings(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        where, what = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise InputError(f"setting {where}: {what}") from None
    except SettingsError as error:
        raise InputError(f"settings: {error}") from None


def describe_settings(file: Path | None = None, /, **flags: Any) -> list[Described]:
    """Describe every setting; see `load_settings` for the arguments and errors."""
    settings = load_settings(file, **flags)
    sources = _sources(file, flags)
    described = []
    for name, value, text in _leaves(settings):
        path = name.split(".")
        origins: list[Origin] = [origin for origin, source in reversed(sources) if _holds(source, path)]
        described.append(Described(name, value, origins[0] if origins else "default", text))
    return described


def _sources(file: Path | None, flags: dict[str, Any]) -> list[tuple[Origin, dict[str, Any]]]:
    """The settings of each source, the weakest source first."""
    return [("file", {} if file is None else _read(file)), ("environment", EnvSettingsSource(Settings)()),
            ("flag", _given(flags))]  # fmt: skip


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: no TOML: {error}") from None


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    nested = {name: _given(value) if isinstance(value, dict) else value for name, value in flags.items()}
    return {name: value for name, value in nested.items() if value is not None and value != {}}


def _updated(weak: dict[str, Any], strong: dict[str, Any]) -> dict[str, Any]:
    both = {
        name: _updated(weak[name], value) if isinstance(value, dict) and isinstance(weak.get(name), dict) else value
        for name, value in strong.items()
    }
    return weak | both


def _holds(source: dict[str, Any], path: list[str]) -> bool:
    for part in path:
        if not isinstance(source, dict) or part not in source:
            return False
        source = source[part]
    return True


def _leaves(group: BaseModel, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    for name, field in type(group).model_fields.items():
        value = getattr(group, name)
        if isinstance(value, Group):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, as_text(value), plain(field.description or "")
