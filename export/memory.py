"""Measures what networks take in memory once they are open, in a fresh process of its own.

The process opens one network after the other and keeps them open, as a server does. What it has more after each,
counted in pages by the kernel, is what that network takes: nothing is assumed of ONNX Runtime. A network's activations
are what its own arena has grown by after it has run one input, and then several.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.sessions import session
from sensai_serve.input_spec import InputSpec
from sensai_serve.manifest.subnet_memory import SubnetMemory
from sensai_serve.process_memory import anonymous_bytes
from sensai_serve.tensors import arrays_of, example

BATCH = 8
"""Inputs of the larger one of the two batches that are run."""
MOST_SECONDS = 120
"""Time that measuring may take; a machine that needs more tells nothing."""
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from export.memory import main; main()"


def measure(files: Sequence[Path], specs: Sequence[InputSpec]) -> list[SubnetMemory | None]:
    """Measure what some networks take.

    Args:
        files: ONNX files; one that comes several times is measured once.
        specs: what they take.

    Returns:
        What each takes; None for all where this system does not count a process's memory.
    """
    different = list(dict.fromkeys(str(file) for file in files))
    wanted = {"files": different, "specs": [spec.to_json() for spec in specs]}
    command = [sys.executable, "-c", _CHILD, json.dumps(sys.path)]
    try:
        done = subprocess.run(
            command, input=json.dumps(wanted).encode(), capture_output=True, check=True, timeout=MOST_SECONDS
        )
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return [None] * len(files)  # the networks have run already: it is the machine that has no room for this
    sizes = {file: None if one is None else SubnetMemory(*one) for file, one in zip(different, found, strict=True)}
    return [sizes[str(file)] for file in files]


def main() -> None:
    """The process: measure what standard input names, and print the bytes as JSON."""
    wanted = json.load(sys.stdin)
    specs = tuple(map(InputSpec.from_json, wanted["specs"]))
    one, several = (arrays_of(example(specs, rows=rows), specs) for rows in (1, BATCH))
    kept = [_open(wanted["files"][0])]  # what the first session of a process takes once is nobody's share
    kept[0].run(None, one)
    sys.stdout.write(json.dumps([_measure(file, one, several, kept) for file in wanted["files"]]))


def _measure(file: str, one: Mapping[str, Any], several: Mapping[str, Any], kept: list[Any]) -> tuple[int, ...] | None:
    counts = [anonymous_bytes()]
    opened = _open(file)
    kept.append(opened)
    counts.append(anonymous_bytes())
    for feed in (one, several):
        for _ in range(2):  # the second run of a shape takes its memory in one piece
            opened.run(None, dict(feed))
        counts.append(anonymous_bytes())
    if any(count is None for count in counts):
        return None
    idle, loaded, ran, batch = (count or 0 for count in counts)
    return max(0, loaded - idle), max(0, ran - loaded), max(0, -(-(batch - ran) // (BATCH - 1)))


def _open(file: str) -> Any:
    """Open a network as a server does."""
    return session(Path(file).read_bytes())
