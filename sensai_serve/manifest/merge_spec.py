"""What a manifest says of the merge."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sensai_serve.errors import RequestError
from sensai_serve.manifest.json_fields import get, integer, list_of, number, object_, optional, string
from sensai_serve.merge import WAITS, Wait, parse_wait
from sensai_serve.merge.confidence import Confidence


@dataclass(frozen=True)
class MergeSpec:
    """How the copies of a class become one answer."""

    rule: str = "majority"
    threshold: float = 0.5
    """A copy votes for its class when its score is at least this."""
    thresholds: tuple[float, ...] = ()
    """The same for each class by itself, of the task ``multilabel``; empty: `threshold` for all."""
    confident: Confidence | None = None
    """When an answer is so sure that it stands before all copies are there; None where no thresholds were fitted."""
    wait: Wait | None = None
    """What requests wait for where neither they nor the server say otherwise; None: as `default_wait`."""
    wave: tuple[int, ...] = ()
    """Workers that requests that wait for ``confident`` ask at a time, where the server does not say; empty: as many as
    its devices run side by side."""

    @property
    def default_wait(self) -> Wait:
        """What requests wait for where nobody says otherwise."""
        return self.wait or "decided"

    def to_json(self) -> dict[str, Any]:
        """The object ``merge`` in ``manifest.json``; what has its default is left out."""
        raw: dict[str, Any] = {"rule": self.rule, "threshold": self.threshold}
        if self.thresholds:
            raw["thresholds"] = list(self.thresholds)
        if self.wait is not None:
            raw["wait"] = self.wait
        if self.wave:
            raw["wave"] = list(self.wave)
        if (confident := self.confident) is not None:
            raw["confident"] = {
                "agreement": confident.agreement,
                "inputs": confident.inputs,
                "order": list(confident.order),
                "thresholds": [None if math.isinf(lead) else lead for lead in confident.thresholds],
                "stopped": list(confident.stopped),
            }
        return raw

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], *, by_class: bool) -> MergeSpec:
        """Read the object ``merge``.

        Args:
            raw: the object.
            by_class: whether it may have thresholds for each class, which the first schema does not know.

        Raises:
            BundleError: a field is of the wrong type.
        """
        return cls(
            rule=get(raw, "rule", string, "majority", where="merge."),
            threshold=get(raw, "threshold", number, 0.5, where="merge."),
            thresholds=get(raw, "thresholds", list_of(number), (), where="merge.") if by_class else (),
            wait=get(raw, "wait", optional(_wait), None, where="merge."),
            wave=get(raw, "wave", list_of(integer), (), where="merge."),
            confident=_confidence(get(raw, "confident", optional(object_), None, where="merge.")),
        )


def _confidence(raw: Mapping[str, Any] | None) -> Confidence | None:
    where = "merge.confident."
    if raw is None:
        return None
    thresholds = get(raw, "thresholds", list_of(optional(number)), where=where)
    return Confidence(
        thresholds=tuple(math.inf if lead is None else lead for lead in thresholds),
        order=get(raw, "order", list_of(integer), where=where),
        agreement=get(raw, "agreement", number, where=where),
        inputs=get(raw, "inputs", integer, where=where),
        stopped=get(raw, "stopped", list_of(number), where=where),
    )


def _wait(value: Any) -> Wait:
    try:
        return parse_wait(string(value))
    except RequestError:
        raise TypeError(f"one of {', '.join(WAITS)}") from None
