"""What a manifest says of one worker's network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from sensai_serve.errors import BundleError
from sensai_serve.manifest.json_fields import get, integer, list_of, number, object_, optional, sha256, string
from sensai_serve.manifest.subnet_memory import SubnetMemory


@dataclass(frozen=True)
class SubnetSpec:
    """Description of one worker's network."""

    worker: int
    file: str
    """Path inside the bundle."""
    sha256: str
    classes: tuple[int, ...]
    """The classes that it scores, in the order of its output."""
    head: str = "sigmoid"
    macs: int = 0
    """Multiply-accumulate operations for one input; 0 where unknown."""
    parameters: int = 0
    microseconds: float = 0.0
    """What one input takes on one core of the machine that made the bundle; 0 where unknown."""
    memory: SubnetMemory | None = None
    """What it takes in a process on the CPU, measured when the bundle was made; None where unknown."""

    def __post_init__(self) -> None:
        for name in ("macs", "parameters", "microseconds"):
            if getattr(self, name) < 0:
                raise BundleError(f"subnets[{self.worker}].{name} is {getattr(self, name)}, expected 0 or more")
        for name, count in asdict(self.memory).items() if self.memory is not None else ():
            if count < 0:
                raise BundleError(f"subnets[{self.worker}].memory.{name} is {count}, expected 0 or more")

    def to_json(self) -> dict[str, Any]:
        """The object of ``subnets`` in ``manifest.json``; what is unknown is left out."""
        raw = asdict(self) | {"classes": list(self.classes)}
        if not self.microseconds:
            del raw["microseconds"]
        if self.memory is None:
            del raw["memory"]
        return raw

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], where: str) -> SubnetSpec:
        """Read an object of ``subnets``.

        Args:
            raw: the object.
            where: what errors call it, with a dot at the end.

        Raises:
            BundleError: a field is missing, or of the wrong type.
        """
        memory, inside = get(raw, "memory", optional(object_), None, where=where), f"{where}memory."
        return cls(
            worker=get(raw, "worker", integer, where=where),
            file=get(raw, "file", string, where=where),
            sha256=get(raw, "sha256", sha256, where=where),
            classes=get(raw, "classes", list_of(integer), where=where),
            head=get(raw, "head", string, "sigmoid", where=where),
            macs=get(raw, "macs", integer, 0, where=where),
            parameters=get(raw, "parameters", integer, 0, where=where),
            microseconds=get(raw, "microseconds", number, 0.0, where=where),
            memory=None
            if memory is None
            else SubnetMemory(
                **{one.name: get(memory, one.name, integer, where=inside) for one in fields(SubnetMemory)}
            ),
        )
