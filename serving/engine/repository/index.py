"""The repository index: every model that is loaded or could be, whether it is ready, and if not, why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from serving.engine.gateway import Gateway


@dataclass(frozen=True)
class Entry:
    """One model, as the repository index lists it."""

    name: str
    version: str
    ready: bool
    reason: str = ""
    """Why the model is not ready; empty if it is."""


def list_models(
    gateways: Mapping[str, Gateway], found: Iterable[str], failed: Mapping[str, str], unserved: Mapping[Path, str]
) -> list[Entry]:
    """List every model, sorted by name.

    Args:
        gateways: the models that are loaded, by name.
        found: names of those that the directory holds.
        failed: why models could not be loaded, by name.
        unserved: why bundles of the directory are not served that should be, by path.
    """
    entries = {name: Entry(name, g.version, g.ready, _reason(g)) for name, g in gateways.items()}
    for name in found:
        entries.setdefault(name, Entry(name, "", ready=False, reason=failed.get(name, "unloaded")))
    for path, reason in unserved.items():
        entry = entries.get(path.name, Entry(path.name, "", ready=False))
        entries[path.name] = entry if entry.ready else replace(entry, reason=reason)
    return sorted(entries.values(), key=lambda entry: entry.name)


def _reason(gateway: Gateway) -> str:
    if gateway.ready and not gateway.loaded:
        return "not in memory, loaded when a request needs it"
    return "" if gateway.ready else "not ready"
