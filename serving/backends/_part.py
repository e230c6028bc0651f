"""Some workers of a bundle as a bundle of their own, so that any backend can run them; and their ids in both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sensai_serve.bundle import Bundle, Golden
from serving.backends import Backend, Plan
from serving.engine.fanout import Cause, Scores, Task
from serving.runtime.devices import Device
from serving.runtime.faults import Fault


@dataclass(frozen=True)
class _PartBundle(Bundle):
    """Some subnets of another bundle."""

    whole: Bundle

    def golden(self) -> Golden:
        """Those of the whole bundle: inputs to try the subnets with, answers that no part can give alone."""
        return self.whole.golden()


def part_of(bundle: Bundle, workers: Sequence[int]) -> Bundle:
    """The bundle that holds only these workers, numbered from 0, and the classes that they cover.

    It has their files, and not the reference; its golden samples are the whole bundle's.
    """
    manifest = bundle.manifest
    chosen = [manifest.subnets[w] for w in workers]
    number = {c: i for i, c in enumerate(sorted({c for subnet in chosen for c in subnet.classes}))}
    subnets = tuple(
        replace(subnet, worker=i, classes=tuple(number[c] for c in subnet.classes)) for i, subnet in enumerate(chosen)
    )
    labels = tuple(manifest.labels[c] for c in number)
    own = replace(manifest, subnets=subnets, labels=labels, kind="custom", offsets=(), symbols=(), reference=None)
    return _PartBundle(bundle.path, own, bundle)


class Part:
    """A backend that runs only some of a bundle's workers, under their own ids. See `serving.backends.Backend`."""

    def __init__(
        self,
        backend: Callable[[Plan], Backend],
        bundle: Bundle,
        device_of: dict[int, Device],
        *,
        max_batch: int,
        inline_s: float,
        faults: Sequence[Fault],
        on_up: Callable[[int], None],
        on_down: Callable[[int], None],
    ) -> None:
        """Construct the backend, on the event loop's thread.

        Args:
            backend: what runs them.
            bundle: the whole one.
            device_of: for each of these workers, where it runs.
            max_batch: the most inputs in one task.
            inline_s: seconds that a task may keep the event loop's own thread.
            faults: on purpose, by the workers' own ids.
            on_up: told their own ids.
            on_down: told their own ids.

        Raises:
            DeviceError: a device that is not here.
        """
        self._ids = ids = tuple(device_of)
        self._number = {worker: i for i, worker in enumerate(ids)}
        devices = tuple(dict.fromkeys(device_of.values()))
        self._backend = backend(
            Plan(
                bundle=part_of(bundle, ids),
                devices=devices,
                device_of=tuple(devices.index(device_of[w]) for w in ids),
                max_batch=max_batch,
                faults=tuple(self._renumbered(fault) for fault in faults),
                on_up=lambda i: on_up(ids[i]),
                on_down=lambda i: on_down(ids[i]),
                inline_s=inline_s,
            )
        )

    def start(self) -> None:
        """Load and warm the workers; blocks."""
        self._backend.start()

    def submit(self, task: Task, workers: Sequence[int]) -> None:
        """Fan a task out."""
        self._backend.submit(_Renumbered(task, self._ids), [self._number[w] for w in workers])

    def stop(self) -> None:
        """End the workers; blocks."""
        self._backend.stop()

    def _renumbered(self, fault: Fault) -> Fault:
        if fault.workers is None:
            return fault
        return replace(fault, workers=frozenset(self._number[w] for w in fault.workers if w in self._number))


class _Renumbered:
    """A task whose workers have other ids in the backend that runs them."""

    __slots__ = ("_ids", "_task", "expires", "inputs")

    def __init__(self, task: Task, ids: Sequence[int]) -> None:
        self.inputs: npt.NDArray[np.float32] = task.inputs
        self.expires = task.expires
        self._task = task
        self._ids = ids

    @property
    def closed(self) -> bool:
        """See `Task`."""
        return self._task.closed

    def deliver(self, worker: int, scores: Scores, seconds: float) -> None:
        """See `Task`."""
        self._task.deliver(self._ids[worker], scores, seconds)

    def fail(self, worker: int, cause: Cause) -> None:
        """See `Task`."""
        self._task.fail(self._ids[worker], cause)
