"""Weights from files that hold data only: whatever training code wrapped around them, names are held against the model.

Training leaves state dicts inside checkpoints, and wrappers (data parallelism, compilation, Lightning) put prefixes
before their names. What is left off is said; nothing is guessed that does not give the model all of its names.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CONTAINERS = ("state_dict", "model_state_dict", "model", "model_state", "net", "network", "module", "weights", "params")
"""Where checkpoints keep a state dict, the likeliest first; others are looked into too."""
WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"})
"""Submodules that torch puts around a module."""
_DEPTH, _PREFIXES = 3, 8


@dataclass(frozen=True)
class Match:
    """One way to read a file as the weights of a model."""

    state: dict[str, Any]
    """By the model's names."""
    container: str
    """The keys that lead to it, with dots; empty for the whole file."""
    removed: str
    """What was left off the names, for messages; empty for nothing."""
    unused: tuple[str, ...]
    """Tensors beside the prefix, which are of no module of the model."""
    misfit: int
    """Names that are missing, too many, or of another shape."""

    def notes(self) -> str:
        """What was done to read it so; empty for nothing."""
        parts = [f"taken from {self.container!r}"] if self.container else []
        parts += [f"names without {self.removed!r}"] if self.removed else []
        if self.unused:
            more = f" and {len(self.unused) - 1} more" if len(self.unused) > 1 else ""
            parts += [f"not used: {self.unused[0]}{more}"]
        return ", ".join(parts)


def read_weights(path: Path) -> Any:
    """What a ``.safetensors``, ``.npz`` or torch file holds. Raises whatever its reader raises."""
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if suffix == ".npz":
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    return _torch_file(path)


def _torch_file(path: Path) -> Any:
    """What `torch.save` wrote, if it is tensors and plain values.

    torch's own messages advise to load other files with the code in them, so they are not passed on.

    Raises:
        TypeError: it holds objects of a class, or is no such file.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes of a file of another kind bring about
        if isinstance(error, OSError | MemoryError):
            raise
        if found := _CLASS.search(str(error)):
            raise TypeError(
                f"it holds {found[1]}, which only code can read: write torch.save(network.state_dict(), FILE) instead"
            ) from None
        if not zipfile.is_zipfile(path):
            raise TypeError("no file of torch.save, or a damaged one") from None
        raise


_CLASS = re.compile(r"Unsupported (?:global: GLOBAL|class) (\S+)")
"""What torch says of a class in a file that is to hold tensors only."""


def match(raw: Any, model: nn.Module) -> Match | None:
    """The way to read `raw` that fits `model` best, the plainest where several do; None where it holds no tensors."""
    expected = model.state_dict()
    best: Match | None = None
    for container, state in _containers(raw, "", _DEPTH):
        for found in _readings(container, state, expected):
            if best is None or found.misfit < best.misfit:
                best = found
            if best.misfit == 0:
                return best
    return best


def _containers(raw: Any, path: str, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(raw, Mapping):
        return
    named = {key: value for key, value in raw.items() if isinstance(key, str)}
    if not named or any(isinstance(value, Tensor) for value in named.values()):
        yield path, named
    if depth:
        keys = sorted(named, key=lambda key: (CONTAINERS.index(key) if key in CONTAINERS else len(CONTAINERS), key))
        for key in keys:
            yield from _containers(named[key], f"{path}.{key}".lstrip("."), depth - 1)


def _readings(container: str, state: dict[str, Any], expected: Mapping[str, Tensor]) -> Iterator[Match]:
    yield _reading(container, state, expected, state, "")
    counts: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for i in range(1, len(parts)):
            if ".".join(parts[i:]) in expected:
                counts[".".join(parts[:i]) + "."] += 1
    for prefix, _ in counts.most_common(_PREFIXES):
        inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        yield _reading(
            container, inside, expected, {n: v for n, v in state.items() if n.startswith(prefix)}, prefix, state
        )
    bare, wanted = _bare(state), _bare(expected)
    if bare is not None and wanted is not None:
        renamed = {wanted.get(name, name): state[full] for name, full in bare.items()}
        yield _reading(
            container, renamed, expected, state, ", ".join(sorted(_wrappers_of(state) ^ _wrappers_of(expected)))
        )


def _reading(
    container: str,
    named: Mapping[str, Any],
    expected: Mapping[str, Tensor],
    used: Mapping[str, Any],
    removed: str,
    whole: Mapping[str, Any] | None = None,
) -> Match:
    kept = {name: value for name, value in named.items() if isinstance(value, Tensor) or name in expected}
    unused = tuple(n for n, v in (whole or {}).items() if n not in used and isinstance(v, Tensor))
    misfit = sum(name not in kept for name in expected) + sum(
        name not in expected or not isinstance(value, Tensor) or value.shape != expected[name].shape
        for name, value in kept.items()
    )
    return Match(kept, container, removed, unused, misfit)


def _bare(names: Mapping[str, Any]) -> dict[str, str] | None:
    """Names by themselves without wrappers; None where two would be the same."""
    bare = {".".join(part for part in name.split(".") if part not in WRAPPERS): name for name in names}
    return bare if len(bare) == len(names) else None


def _wrappers_of(names: Mapping[str, Any]) -> set[str]:
    return {f"{part}." for name in names for part in name.split(".") if part in WRAPPERS}
