"""Find a plugin by name: a file of ours, an installed entry point, or ``package.module:callable``.

Every kind of plugin (criterion, grouping, model, data source, merge rule, transport, backend) is found here, so a new
one is one new file and no list needs editing.
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import Any

from sensai_serve.errors import PluginError


def available(package: str) -> tuple[str, ...]:
    """Names of the plugins that `package` (say ``pruning.criteria``) brings, and of installed entry points, sorted."""
    module = importlib.import_module(package)
    ours = {m.name for m in pkgutil.iter_modules(module.__path__) if not m.name.startswith("_")}
    return tuple(sorted(ours | {e.name for e in entry_points(group=f"sensai_serve.{package}")}))


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
        return _import(*name.split(":", 1))
    for entry in entry_points(group=f"sensai_serve.{package}"):
        if entry.name == name:
            return _import(entry.module, entry.attr)
    module_name = name.replace("-", "_")
    if module_name in available(package):
        return _import(f"{package}.{module_name}", attribute)
    kind = package.rpartition(".")[2]
    raise PluginError(
        f"{kind}: nothing is called {name!r}, "
        f"expected one of {', '.join(available(package))} or package.module:callable"
    )


def _import(module: str, path: str) -> Any:
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise PluginError(f"{module}:{path}: cannot import {module} ({error})") from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise PluginError(f"{module}:{path}: the module {module} has no {part!r}") from None
    return found
