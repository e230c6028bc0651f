"""Splits workers into waves, where a request need not ask all of them: a pure function of their order and devices."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from sensai_serve.cpus import usable_cores
from serving.runtime.devices import ONE_THREAD, Device, Threads

Waves = tuple[tuple[int, ...], ...]
"""Workers of each wave, in the order in which waves are asked."""


def side_by_side(device: Device, n_workers: int, threads: Threads = ONE_THREAD) -> int:
    """Workers that a device runs at the same time without one slowing another down.

    A core and a card run one. ``cpu`` runs one for each core, or for as many cores as a subnet has threads. What a
    server on another machine can do only that machine knows: it counts for all of its workers.

    Args:
        device: any device.
        n_workers: the workers that are placed on it.
        threads: threads of one subnet on the CPU.
    """
    if device.kind == "remote":
        return n_workers
    if device.kind == "cuda" or (device.index is not None and threads.count == 1):
        return 1
    return max(1, len(usable_cores()) // threads.count)


def make_waves(order: Sequence[int], device_of: Sequence[int], room: Sequence[int], sizes: Sequence[int] = ()) -> Waves:
    """Split workers into waves that keep to an order and use devices evenly.

    Args:
        order: the workers, the first asked first.
        device_of: the index of each worker's device, by worker id.
        room: of each device, the workers that it runs side by side.
        sizes: the number of workers in the first, second, ... wave, the last number again and again; where empty, as
            many as the devices of these workers run side by side.

    Returns:
        The workers of each wave; one wave where all workers run side by side.
    """
    used = sum(room[device] for device in {device_of[worker] for worker in order})
    left, waves, each = (
        list(order),
        list[tuple[int, ...]](),
        itertools.chain(sizes, itertools.repeat((sizes or [used])[-1])),
    )
    while left:
        wave = _fill(left, device_of, room, next(each))
        waves.append(wave)
        left = [worker for worker in left if worker not in wave]
    return tuple(waves)


def _fill(left: Sequence[int], device_of: Sequence[int], room: Sequence[int], size: int) -> tuple[int, ...]:
    """The first workers whose devices have room; once none has, each device has as much room again."""
    wave: list[int] = []
    taken = dict.fromkeys(map(device_of.__getitem__, left), 0)
    for times in itertools.count(1):
        for worker in left:
            device = device_of[worker]
            if len(wave) < size and worker not in wave and taken[device] < times * room[device]:
                wave.append(worker)
                taken[device] += 1
        if len(wave) == min(size, len(left)):
            return tuple(wave)
    raise AssertionError("counting has no end")
