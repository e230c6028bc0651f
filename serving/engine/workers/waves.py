"""Waves: the workers that a request asks first, and those that it asks only if its answer needs more copies."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Sequence

from sensai_serve.merge import WAITS, Wait
from serving.engine.options import GatewayOptions
from serving.placement.place import Placement
from serving.placement.waves import Waves, make_waves, side_by_side


class WavePlan:
    """Which workers of a model are asked together, and for which requests. All calls on the event loop's thread."""

    def __init__(
        self, order: Sequence[int], placement: Placement, options: GatewayOptions, sizes: Sequence[int] = ()
    ) -> None:
        """Find out how many workers the devices run side by side.

        Args:
            order: every worker, the first asked first.
            placement: the device of each worker.
            options: devices, and the sizes of waves where they are given.
            sizes: of the waves of requests that wait for ``confident``, where the options give none.
        """
        self._order = order
        self._device_of = placement.device_of
        self._room = [
            side_by_side(device, len(placement.workers_on(at)), options.onnx_threads)
            for at, device in enumerate(options.devices)
        ]
        self._sizes = options.wave or tuple(sizes)
        self.waits: frozenset[Wait] = frozenset(w for w in WAITS if w == "confident" or (options.wave and w != "all"))
        """Requests that wait for one of these ask in waves."""
        self._admitted: list[int] | None = None
        self._waves: Waves = ()

    def of(self, admitted: list[int]) -> Waves:
        """The waves of the workers that requests go to; one wave where all run side by side."""
        if self._admitted != admitted:  # a worker has come or gone
            order = [worker for worker in self._order if worker in admitted]
            self._admitted, self._waves = admitted, make_waves(order, self._device_of, self._room, self._sizes)
        return self._waves


class WaveQueue:
    """The waves that one request still has to ask. Not thread-safe: the fan-out's lock is held for every call."""

    __slots__ = ("_asked_s", "_call", "_current", "_due", "_left", "_listening")

    def __init__(self, waves: Sequence[Sequence[int]], call: Callable[[], object]) -> None:
        """The first wave is due.

        Args:
            waves: the workers of each wave, in the order in which they are asked.
            call: called when another wave has become due after `take` found none; safe on any thread.
        """
        self._left = deque(waves)
        self._call = call
        self._due = True
        self._listening = False
        self._current: Sequence[int] = ()
        self._asked_s: dict[int, float] = {}

    @property
    def left(self) -> bool:
        """Whether some wave has not been asked yet."""
        return bool(self._left)

    @property
    def unasked(self) -> int:
        """Number of workers that have not been asked."""
        return sum(map(len, self._left))

    @property
    def unasked_workers(self) -> frozenset[int]:
        """The workers that have not been asked."""
        return frozenset(worker for wave in self._left for worker in wave)

    def asked_s(self, worker: int) -> float:
        """When a worker was asked, as `take` was told; 0 for one that was not."""
        return self._asked_s.get(worker, 0.0)

    def take(self, now_s: float) -> Sequence[int]:
        """Take the wave that is due; empty where none is, and from then on `call` is called when one is.

        Args:
            now_s: seconds since the request was handed over.
        """
        if not self._due:
            self._listening = True
            return ()
        self._due, self._current = False, self._left.popleft()
        self._asked_s |= dict.fromkeys(self._current, now_s)
        return self._current

    def is_over(self, awaited: Container[int]) -> bool:
        """Whether no worker of the wave asked last is awaited."""
        return not any(worker in awaited for worker in self._current)

    def close(self) -> None:
        """Ask no more; `call`, which may hold the request, is let go."""
        self._listening, self._call = False, bool

    def make_due(self) -> None:
        """The next wave, of which there must be one, is to be asked."""
        if self._due:
            return
        self._due = True
        if self._listening:
            self._listening = False
            self._call()
