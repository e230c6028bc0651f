"""Links between a gateway and its hosts: how long a message takes from one to another, as a file says."""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sensai_serve.errors import InputError
from serving.runtime.endpoint import WorkerEndpoint, read

GATEWAY = "gateway"
"""Name of the gateway in a file of links."""
SEND_S = 100e-6
"""Seconds that a message keeps its sender from sending another, beside its bytes, where a file does not say."""
RECEIVE_S = 1000e-6
"""Seconds from a message's last byte until its receiver can use it or hand it on, where a file does not say."""
_KEYS = {"between", "mbit", "ms"}


@dataclass(frozen=True)
class Links:
    """What every pair of machines is joined by. Index 0 is the gateway, 1 to H are the hosts; links are two-way."""

    hosts: tuple[str, ...]
    """Names of the H hosts."""
    latency_s: tuple[tuple[float, ...], ...]
    """Seconds from one machine to another, [1 + H, 1 + H]; the diagonal is not used."""
    bytes_per_s: tuple[tuple[float, ...], ...]
    """Bytes per second from one machine to another, [1 + H, 1 + H]."""
    send_s: float = SEND_S
    """Seconds that a message keeps its sender from sending another, beside its bytes."""
    receive_s: float = RECEIVE_S
    """Seconds from a message's last byte until its receiver can use it or hand it on."""

    def only(self, hosts: Sequence[int]) -> Links:
        """The links of some hosts, by their positions in `hosts`, in this order."""
        kept = [0, *(host + 1 for host in hosts)]
        return Links(
            tuple(self.hosts[host] for host in hosts),
            tuple(tuple(self.latency_s[a][b] for b in kept) for a in kept),
            tuple(tuple(self.bytes_per_s[a][b] for b in kept) for a in kept),
            self.send_s,
            self.receive_s,
        )


def even_links(
    hosts: Sequence[str], bytes_per_s: float, latency_s: float, send_s: float = SEND_S, receive_s: float = RECEIVE_S
) -> Links:
    """Links that are all alike."""
    n = len(hosts) + 1
    return Links(tuple(hosts), ((latency_s,) * n,) * n, ((bytes_per_s,) * n,) * n, send_s, receive_s)


def read_links(path: Path, servers: Sequence[WorkerEndpoint]) -> Links:
    """Read a TOML file of links, or JSON where its name ends in ``.json``.

    A table ``[[link]]`` says what joins two machines in both directions: ``between``, two names, each the gateway, a
    host, HOST:PORT, or a pattern such as ``rack-1-*``; ``mbit``, megabits per second; ``ms``, milliseconds one way. Of
    several tables for a pair the last holds. ``send_us`` and ``receive_us`` are `Links.send_s` and `Links.receive_s` in
    microseconds.

    Args:
        path: the file.
        servers: the hosts, each once.

    Raises:
        InputError: the file cannot be read, a table is not valid or names no host, or a pair has no table.
    """
    content = _content(path)
    tables = content.get("link", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InputError(f"{path}: expected tables [[link]]")
    if unknown := set(content) - {"link", "send_us", "receive_us"}:
        raise InputError(f"{path}: {sorted(unknown)[0]!r} is unknown, expected send_us, receive_us and tables [[link]]")
    names = [(GATEWAY,), *((server.host, server.address) for server in servers)]
    joined: dict[tuple[int, int], tuple[float, float]] = {}
    for table in tables:
        first, second, mbit, ms = _link(path, table)
        ends = [[i for i, its in enumerate(names) if any(fnmatchcase(n, end) for n in its)] for end in (first, second)]
        for end, found in zip((first, second), ends, strict=True):
            if not found:
                known = ", ".join(its[0] for its in names[:9]) + (" ..." if len(names) > 9 else "")
                raise InputError(f"{path}: {end!r} is no host, expected one of {known}, or a pattern of them")
        for a, b in itertools.product(*ends):
            joined[min(a, b), max(a, b)] = ms / 1e3, mbit * 1e6 / 8
    for a, b in itertools.combinations(range(len(names)), 2):
        if (a, b) not in joined:
            pair = " and ".join(names[i][-1] for i in (a, b))
            raise InputError(f"{path} says nothing of {pair}, expected a [[link]] between them")

    def table_of(part: int) -> tuple[tuple[float, ...], ...]:
        n = range(len(names))
        return tuple(tuple(joined[min(a, b), max(a, b)][part] if a != b else 1.0 for b in n) for a in n)

    send_s = _number(path, content, "send_us") / 1e6 if "send_us" in content else SEND_S
    receive_s = _number(path, content, "receive_us") / 1e6 if "receive_us" in content else RECEIVE_S
    return Links(tuple(server.address for server in servers), table_of(0), table_of(1), send_s, receive_s)


def links_text(links: Links) -> str:
    """Write links as `read_links` reads them."""
    names = [GATEWAY, *links.hosts]
    lines = [f"send_us = {1e6 * links.send_s:.6g}", f"receive_us = {1e6 * links.receive_s:.6g}"]
    for a, b in itertools.combinations(range(len(names)), 2):
        mbit = min(links.bytes_per_s[a][b], links.bytes_per_s[b][a]) * 8 / 1e6
        ms = 1e3 * max(links.latency_s[a][b], links.latency_s[b][a])
        lines += [
            "",
            "[[link]]",
            f"between = {json.dumps([names[a], names[b]])}",
            f"mbit = {mbit:.6g}",
            f"ms = {ms:.6g}",
        ]
    return "\n".join(lines)


def _content(path: Path) -> Mapping[str, Any]:
    text = read(path).decode("utf-8", "replace")
    try:
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise InputError(f"{path} is no {kind}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected tables [[link]]")
    return content


def _link(path: Path, table: Mapping[str, Any]) -> tuple[str, str, float, float]:
    if set(table) != _KEYS:
        raise InputError(f"{path}: a [[link]] has {', '.join(table) or 'nothing'}, expected between, mbit and ms")
    match table["between"]:
        case [str() as first, str() as second]:
            return first, second, _number(path, table, "mbit"), _number(path, table, "ms")
    raise InputError(f"{path}: between is {table['between']!r}, expected two names of hosts")


def _number(path: Path, table: Mapping[str, Any], key: str) -> float:
    value = table[key]
    least = 1e-3 if key == "mbit" else 0
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= 1e9:
        raise InputError(f"{path}: {key} is {value!r}, expected a number of at least {least:g}")
    return float(value)
