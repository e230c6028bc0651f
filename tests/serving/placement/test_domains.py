"""Hosts as failure domains: what is said about losing them is so, and `sensai place` makes them losable."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensai_serve.assignment import cyclic
from sensai_serve.bundles import Bundle
from sensai_serve.cli.main import main
from sensai_serve.guarantees import survives
from serving.placement.domains import host_lines, hosts_of, losses_covered, spread
from serving.placement.worker_map import parse_workers
from serving.runtime.devices import Device
from serving.runtime.endpoint import Security, WorkerEndpoint

CODE = cyclic(10, (0, 1, 3))
LABELS = [f"class-{c}" for c in range(10)]


@given(st.lists(st.integers(-1, 4), min_size=10, max_size=10))
def test_any_so_many_hosts_can_be_lost_and_not_any_one_more(host_of: list[int]) -> None:
    """-1 is this machine."""
    hosts = {str(h): {w for w in range(10) if host_of[w] == h} for h in sorted(set(host_of) - {-1})}
    if not hosts:
        return

    def all_survive(size: int) -> bool:
        sets = itertools.combinations(hosts.values(), size)
        return all(survives(CODE, set().union(*lost)) for lost in sets)

    covered = losses_covered(CODE, hosts)
    assert all(all_survive(size) for size in range(covered + 1))
    assert covered == len(hosts) or not all_survive(covered + 1)


def test_two_servers_of_one_host_are_lost_together() -> None:
    places = parse_workers(["0-4=grpc://a:1", "5-7=grpc://a:2", "8-9=grpc://b:1"], None, Security())
    hosts = hosts_of(places.devices, places.device_of(10))
    assert hosts == {"a": set(range(8)), "b": {8, 9}}
    assert host_lines(CODE, LABELS, hosts) == [
        "tolerates no lost other host",
        "also: b",
        "losing a leaves class-3, class-4, class-5, class-6, class-7 without a copy",
    ]


def test_copies_on_this_machine_are_not_lost() -> None:
    places = parse_workers(["0-2=grpc://a:1", "*=cpu"], None, Security())
    lines = host_lines(CODE, LABELS, hosts_of(places.devices, places.device_of(10)))
    assert lines == ["tolerates the loss of every other host: every class has a copy on this one"]


def test_workers_are_spread_over_hosts_first_then_over_their_servers() -> None:
    servers = [Device("remote", endpoint=WorkerEndpoint("grpc", host, port)) for host in "abcd" for port in (1, 2)]
    found = spread(CODE, [1.0] * 10, servers)
    assert sorted(w for workers in found.values() for w in workers) == list(range(10))
    assert max(map(len, found.values())) <= 2
    hosts: dict[str, set[int]] = {}
    for server, workers in found.items():
        assert server.endpoint is not None
        hosts.setdefault(server.endpoint.host, set()).update(workers)
    assert losses_covered(CODE, hosts) >= 1


def test_place_prints_a_file_that_serve_takes(capsys, tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["place", str(tiny_bundle), "grpc://a:1", "grpc://b:1", "grpc://c:1"])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert out.startswith("# tolerates the loss of any 1 of 3 other hosts")
    (tmp_path / "workers").write_text(out)
    places = parse_workers([], tmp_path / "workers", Security())
    n_workers = Bundle.open(tiny_bundle).assignment.n_workers
    assert len(set(places.device_of(n_workers))) == 3
    with pytest.raises(SystemExit) as ended:
        main(["place", str(tiny_bundle), "grpc://a:1", "grpc://a:1"])
    assert ended.value.code == 2
    assert "expected different ones, without a model" in capsys.readouterr().err
