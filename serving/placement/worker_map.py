"""Which worker runs where, as a user writes it: ``0,3,7=grpc://node1:8001``, one per line or per option.

The left side has ids, ranges (``0-4``), or ``*`` for all workers that no other line names; the right side has a server
(`serving.runtime.endpoint`) or a device of this machine (``cpu:0``, ``cuda:1``). A node that gets large inputs from
another one, in a broadcast tree, names it: ``1,4=grpc://node2:8001 via grpc://node1:8001``. The line
``relay inputs from 65536 bytes in pieces of 32768`` says what is large.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sensai_serve.errors import InputError
from serving.runtime.devices import Device, parse_device
from serving.runtime.endpoint import Relaying, Security, WorkerEndpoint, parse_endpoint, read
from serving.runtime.keepalive import NO_PINGS, Keepalive

_IDS = re.compile(r"\d{1,6}(-\d{1,6})?(,\d{1,6}(-\d{1,6})?)*")
_SIZES = re.compile(r"relay inputs from (\d{1,12}) bytes in pieces of (\d{1,9})")
MAX_WORKERS = 100_000
LEAST_PIECE_BYTES = 1024
"""Bytes of the smallest piece that an input may be handed on in."""


@dataclass(frozen=True)
class WorkerMap:
    """Where each worker runs."""

    lines: tuple[tuple[tuple[int, ...] | None, Device], ...]
    """Workers, or None for all that no other line names, and the device that they run on."""

    @property
    def devices(self) -> tuple[Device, ...]:
        """Every device once, in the order of the lines."""
        return tuple(dict.fromkeys(device for _, device in self.lines))

    def device_of(self, n_workers: int) -> tuple[int, ...]:
        """Return the index in `devices` of each worker's device.

        Args:
            n_workers: the number of workers of the bundle.

        Raises:
            InputError: a worker is listed twice or not at all, or the bundle lacks it.
        """
        devices = self.devices
        found: dict[int, Device] = {}
        others: Device | None = None
        for workers, device in self.lines:
            if workers is None:
                if others is not None:
                    raise InputError(f"'*' is listed twice: {others} and {device}")
                others = device
            for worker in workers or ():
                if worker >= n_workers:
                    raise InputError(f"worker {worker} is listed, expected one of 0 to {n_workers - 1}")
                if worker in found:
                    raise InputError(f"worker {worker} is listed twice: {found[worker]} and {device}")
                found[worker] = device
        missing = [w for w in range(n_workers) if w not in found]
        if missing and others is None:
            some = ", ".join(map(str, missing[:8])) + (" ..." if len(missing) > 8 else "")
            word = "workers" if len(missing) > 1 else "worker"
            raise InputError(f"{word} {some}: listed nowhere, expected each of 0 to {n_workers - 1} once, or '*'")
        return tuple(devices.index(found.get(w, others)) for w in range(n_workers))


def parse_workers(
    specs: Sequence[str], file: Path | None, security: Security, keepalive: Keepalive = NO_PINGS
) -> WorkerMap:
    """Parse the lines of ``--worker`` and ``--workers FILE`` together.

    Args:
        specs: lines such as ``0,3=grpc://HOST:PORT``.
        file: a file of such lines; empty lines and comments after # are skipped.
        security: the security of every connection.
        keepalive: when gRPC connections are pinged.

    Raises:
        InputError: a line is not valid, or the file cannot be read.
    """
    named = [("", spec) for spec in specs]
    if file is not None:
        text = read(file).decode("utf-8", "replace")
        lines = [line.partition("#")[0].strip() for line in text.splitlines()]
        named += [(f"{file}:{number}: ", line) for number, line in enumerate(lines, 1) if line]
        if not named:
            raise InputError(f"{file} lists no workers, expected lines such as 0,3,7=grpc://HOST:PORT")
    sizes: Relaying | None = None
    found: list[tuple[tuple[int, ...] | None, Device]] = []
    for where, spec in named:
        if spec.strip().startswith("relay "):
            if sizes is not None:
                raise InputError(f"{where}{spec!r} is the second such line, expected one")
            sizes = _parse_sizes(where, spec.strip())
        else:
            found.append(_parse(where, spec, security, keepalive))
    return WorkerMap(tuple(_in_a_tree(found, sizes or Relaying(""))))


def workers_on(workers: WorkerMap, host: str) -> tuple[int, ...]:
    """Return the workers of a host, given by its name or the first part of it (``node-0`` of ``node-0.sensai``).

    Raises:
        InputError: no line names the host, or the line that does is for '*'.
    """
    found: list[int] = []
    for ids, device in workers.lines:
        endpoint = device.endpoint
        if endpoint is not None and host in (endpoint.host, endpoint.host.partition(".")[0]):
            if ids is None:
                raise InputError(f"'*' is for {device}, expected the workers of a node by their ids")
            found += ids
    if not found:
        raise InputError(f"no worker is for the host {host!r}, expected one of the hosts that are listed (--host)")
    return tuple(found)


def parse_ids(text: str) -> tuple[int, ...]:
    """Parse ids and ranges of workers: ``0,3-5`` is 0, 3, 4, 5.

    Raises:
        InputError: the text has other parts, a descending range, or a worker twice.
    """
    if not _IDS.fullmatch(text):
        raise InputError(f"workers are {text!r}, expected ids and ranges such as 0,3-5")
    ids: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if int(last or first) < int(first) or int(last or first) - int(first) > MAX_WORKERS:
            raise InputError(f"workers are {text!r}, expected ascending ranges such as 3-5")
        ids += range(int(first), int(last or first) + 1)
    if len(set(ids)) != len(ids):
        raise InputError(f"workers are {text!r}, expected each once")
    return tuple(ids)


def _parse(where: str, spec: str, security: Security, keepalive: Keepalive) -> tuple[tuple[int, ...] | None, Device]:
    workers, equals, target = (part.strip() for part in spec.partition("="))
    if not equals:
        raise InputError(f"{where}worker is {spec!r}, expected WORKERS=grpc://HOST:PORT or WORKERS=cpu:CORE")
    target, *via = target.split(" via ")
    try:
        ids = None if workers == "*" else parse_ids(workers)
        if "://" not in target and not via:
            return ids, parse_device(target)
        endpoint = parse_endpoint(target.strip(), security, keepalive)
        if via:
            parent = parse_endpoint(" via ".join(via).strip(), security, keepalive)
            _check_relay(endpoint, parent)
            endpoint = replace(endpoint, relaying=Relaying(parent.server))
    except InputError as error:
        raise type(error)(f"{where}{error}") from None
    if endpoint.model and (ids is None or len(ids) > 1):
        raise InputError(f"{where}{endpoint} is one model, expected one worker for it, not {workers}")
    return ids, Device("remote", endpoint=endpoint)


def _parse_sizes(where: str, spec: str) -> Relaying:
    match = _SIZES.fullmatch(spec)
    if match is None or int(match[2]) < LEAST_PIECE_BYTES:
        expected = f"relay inputs from BYTES bytes in pieces of BYTES, the latter at least {LEAST_PIECE_BYTES}"
        raise InputError(f"{where}line is {spec!r}, expected {expected}")
    return Relaying("", int(match[1]), int(match[2]))


def _check_relay(endpoint: WorkerEndpoint, parent: WorkerEndpoint) -> None:
    for each in (endpoint, parent):
        if each.scheme not in ("grpc", "grpcs") or each.model:
            raise InputError(f"{endpoint} via {parent}: expected two nodes, grpc://HOST:PORT or grpcs://HOST:PORT")


def _in_a_tree(
    lines: Sequence[tuple[tuple[int, ...] | None, Device]], sizes: Relaying
) -> Sequence[tuple[tuple[int, ...] | None, Device]]:
    """The lines, with what is large in each of them, if their nodes hand inputs on as a tree.

    Raises:
        InputError: a node hands inputs on that no line names, a node is reached in two ways, or there is a loop.
    """
    ways: dict[str, str | None] = {}  # the parent of each server; None for the gateway
    for _, device in lines:
        if (endpoint := device.endpoint) is not None:
            way = None if endpoint.relaying is None else endpoint.relaying.server
            if ways.setdefault(endpoint.server, way) != way:
                both = f"{ways[endpoint.server] or 'directly'} and {way or 'directly'}"
                raise InputError(f"{endpoint.server} is reached in two ways, expected one: {both}")
    for server, way in ways.items():
        if way is not None and way not in ways:
            raise InputError(f"{server} via {way}: no worker is there, expected one of the nodes that are listed")
    for server, way in ways.items():
        passed, at = [server], way
        while at is not None:
            if at in passed:
                raise InputError(f"the tree has a loop: {' via '.join([*passed, at])}")
            passed.append(at)
            at = ways[at]

    def sized(device: Device) -> Device:
        endpoint = device.endpoint
        if endpoint is None or endpoint.relaying is None:
            return device
        return replace(device, endpoint=replace(endpoint, relaying=replace(sizes, server=endpoint.relaying.server)))

    return [(workers, sized(device)) for workers, device in lines]
