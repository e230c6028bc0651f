"""Find a plugin by name: a file of ours, an installed entry point, or ``package.module:callable``.

Every kind of plugin (criterion, grouping, model, data source, merge rule, transport, backend) is found here, so a new
one is one new file and no list needs editing. What is installed is looked up once in a process for each kind, and
again only when `sys.path` has changed: reading the metadata of every installed package takes tens of milliseconds. A
``package.module:callable`` may lie in the current directory; it is found after everything that is installed.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, distributions
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any

from sensai_serve import user_code
from sensai_serve.errors import PluginError


def available(package: str) -> tuple[str, ...]:
    """Names of the plugins that `package` (say ``pruning.criteria``) brings, and of installed entry points, sorted."""
    return tuple(sorted(_files(package) | _installed(package, tuple(sys.path)).keys()))


def find(package: str, name: str, attribute: str) -> Any:
    """The plugin called `name`.

    Args:
        package: where our own plugins of this kind live, one file each, say ``"pruning.criteria"``. The entry point
            group is ``sensai_serve.`` followed by it.
        name: a file's name without ``.py``, an entry point's name, or ``package.module:callable``.
        attribute: what a plugin's file calls the thing, say ``"importance"``.

    Raises:
        PluginError: nothing answers to that name, or what does cannot be imported.
    """
    if ":" in name:
        user_code.find_in_current_directory()
        return _import(*name.split(":", 1))
    entry = _installed(package, tuple(sys.path)).get(name)
    if entry is not None:
        return _import(entry.module, entry.attr)
    module_name = name.replace("-", "_")
    if module_name in _files(package):
        return _import(f"{package}.{module_name}", attribute)
    kind = package.rpartition(".")[2]
    raise PluginError(
        f"{kind}: nothing is called {name!r}, "
        f"expected one of {', '.join(available(package))} or package.module:callable"
    )


def summary(package: str, name: str) -> str:
    """The first line of the docstring of a plugin's module, read from its source: the module is not imported.

    Args:
        package: where our own plugins of this kind live.
        name: one of `available`.

    Returns:
        The line; empty where the module has none, or no readable source.
    """
    entry = _installed(package, tuple(sys.path)).get(name)
    try:
        found = find_spec(entry.module if entry else f"{package}.{name.replace('-', '_')}")
        source = Path(found.origin).read_text(encoding="utf-8") if found and found.origin else ""
        return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    except (ImportError, OSError, ValueError, SyntaxError):
        return ""


@lru_cache
def _files(package: str) -> frozenset[str]:
    """Names of the plugins that are files of `package`; those that begin with an underscore are none."""
    spec = find_spec(package)  # looks, without importing the package itself: what lists names need not load torch
    places = None if spec is None else spec.submodule_search_locations
    return frozenset(m.name for m in pkgutil.iter_modules(places or ()) if not m.name.startswith("_"))


@lru_cache
def _installed(package: str, path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """Entry points by name for the plugins of `package` that distributions on `path` bring; of one name the first."""
    return {entry.name: entry for entry in reversed(_all_installed(path)) if entry.group == f"sensai_serve.{package}"}


@lru_cache(maxsize=1)
def _all_installed(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Our kinds' entry points of all distributions; `path` is `sys.path`, here as the key of the cache."""
    found = (entry for distribution in distributions(path=list(path)) for entry in distribution.entry_points)
    return tuple(entry for entry in found if entry.group.startswith("sensai_serve."))


def _import(module: str, path: str) -> Any:
    if module.endswith(".py") or "/" in module:
        name = PurePath(module).stem
        raise PluginError(
            f"{module}:{path}: {module} is a file, expected the name of a module: {name}:{path}, where {name}.py is in "
            "the current directory"
        )
    user_code.note(module)
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        reason = f"{error}{user_code.clash(module)}"
        if place := user_code.place_of(error):
            reason = f"{place}: {reason}"
        raise PluginError(f"{module}:{path}: cannot import {module} ({reason})") from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise PluginError(f"{module}:{path}: the module {module} has no {part!r}") from None
    return found
