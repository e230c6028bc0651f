"""Says in a manifest what a bundle of existing files was made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sensai_serve
from export.existing.cascade import Cascade
from export.existing.examine import Examined, described
from export.existing.measure import Measured
from export.existing.samples import RANDOM, Data


def provenance(
    found: Examined,
    microseconds: Sequence[float],
    data: Data | None,
    measured: Measured | None,
    cascade: Cascade | None,
) -> dict[str, Any]:
    """What a bundle was made of. Of paths only the last part is kept: it is nobody's business where files lie.

    Args:
        found: the files.
        microseconds: what each file takes for one input.
        data: what choices were made on; None where there was none.
        measured: the choices; None where there was no labelled data.
        cascade: None where the bundle is none.
    """
    said: dict[str, Any] = {
        "made_by": f"sensai-serve {sensai_serve.__version__}",
        "files": [
            {
                "file": Path(subnet.given.name).name,
                "sha256": subnet.given.sha256,
                "takes": subnet.takes.described(),
                "gives": subnet.gives.described(),
                "loop": subnet.one_by_one,
                "microseconds": time,
            }
            for subnet, time in zip(found.subnets, microseconds, strict=True)
        ],
        "golden": f"{RANDOM} random inputs" if found.random else "inputs of the data",
        "normalisation": described(found.specs[0].normalisation),
    }
    if data is not None and measured is not None:
        said |= {"data": data.name, "temperatures": list(measured.choices.temperatures)}
        said["measured"] = "choices were made on other inputs of the data than those that they are measured on"
    if cascade is not None:
        said["cascade"] = {"loss": cascade.loss}
    if found.tried:
        said["normalisations_tried"] = dict(found.tried)
    return said
