"""Broadcast trees: a plan spans all hosts and is never slower than no tree; files of links; `place` and `plan`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensai_serve.bundles import Bundle
from sensai_serve.cli.main import main
from sensai_serve.errors import InputError
from serving.placement.host_network import HostNetwork
from serving.placement.links import Links, even_links, links_text, read_links
from serving.placement.tree import GATEWAY, answered_s, arrivals_s, plan_tree, top_down
from serving.placement.worker_map import parse_workers
from serving.runtime.endpoint import Relaying, Security, WorkerEndpoint

SIXTEEN = [f"host-{number}" for number in range(16)]
GBIT = 1e9 / 8


@st.composite
def all_links(draw: st.DrawFn) -> Links:
    n = draw(st.integers(1, 6)) + 1
    rates, waits = st.sampled_from([1e6, 1e7, 1.25e8, 1.25e9]), st.sampled_from([0.0, 1e-4, 1e-3, 0.02])
    rate = {(a, b): draw(rates) for a in range(n) for b in range(a)}
    wait = {(a, b): draw(waits) for a in range(n) for b in range(a)}

    def table(of: dict[tuple[int, int], float]) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(of[max(a, b), min(a, b)] if a != b else 1.0 for b in range(n)) for a in range(n))

    return Links(tuple(f"h{host}" for host in range(n - 1)), table(wait), table(rate))


@given(all_links(), st.integers(1, 2_000_000))
def test_a_planned_tree_spans_all_hosts_and_is_never_slower_than_sending_to_each(links: Links, size: int) -> None:
    plan = plan_tree(links, size)
    assert sorted(top_down(plan.parent_of)) == list(range(len(links.hosts)))  # raises where there is a loop
    assert plan.bound_s <= plan.seconds * (1 + 1e-9)
    assert plan.seconds <= plan.direct_s
    assert plan.seconds == answered_s(links, plan.parent_of, size, plan.piece_bytes)
    assert 1 <= plan.least_bytes <= size
    assert plan == plan_tree(links, size)


def test_large_inputs_go_through_a_tree_and_small_ones_do_not() -> None:
    links = even_links(SIXTEEN, GBIT, 100e-6)
    large, small = plan_tree(links, 600_000), plan_tree(links, 12_000)
    assert large.seconds < 0.5 * large.direct_s
    assert large.direct_s == pytest.approx(
        16 * (600_000 / GBIT + links.send_s) + links.send_s + 2 * (100e-6 + links.receive_s)
    )
    assert not large.is_direct
    assert large.least_bytes > 12_000
    assert small.is_direct


def test_hosts_behind_a_thin_link_get_inputs_from_each_other() -> None:
    """Two racks, the second behind links of a tenth."""
    rack = [0, 0, 0, 0, 1, 1, 1, 1]  # of the gateway and seven hosts
    rate = tuple(tuple(GBIT if a == b else GBIT / 10 for b in rack) for a in rack)
    links = Links(tuple(map(str, range(7))), ((1e-4,) * 8,) * 8, rate)
    plan = plan_tree(links, 600_000)
    across = [host for host, parent in enumerate(plan.parent_of) if rack[host + 1] != rack[parent + 1]]
    assert len(across) < 4
    assert plan.seconds < 0.4 * plan.direct_s


def test_pieces_are_handed_on_as_they_come() -> None:
    links = even_links(["a", "b", "c"], 1e6, 0.0, 0.0, 0.0)
    chain = (GATEWAY, 0, 1)
    assert arrivals_s(links, chain, 1_000_000, 1_000_000) == pytest.approx([1.0, 2.0, 3.0])
    assert arrivals_s(links, chain, 1_000_000, 100_000) == pytest.approx([1.0, 1.1, 1.2])
    assert arrivals_s(links, (GATEWAY,) * 3, 1_000_000, 1_000_000) == pytest.approx([1.0, 2.0, 3.0])


@pytest.mark.parametrize(("parents", "message"), [((1, 0), "the tree has a loop"), ((GATEWAY, 2), "expected -1 to 1")])
def test_what_is_no_tree_is_one_line(parents: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        answered_s(even_links(["a", "b"], GBIT, 0), parents, 1000, 1000)


def test_the_children_of_a_host_that_is_down_are_sent_to_directly() -> None:
    links = even_links(SIXTEEN, GBIT, 100e-6)
    network = HostNetwork(links, 600_000, tree=True)
    parents = network.plan(16).parent_of
    middle = next(host for host in range(16) if host in parents)
    took, all_well = network.seconds(16, frozenset({middle})), network.seconds(16)
    assert max(took) < HostNetwork(links, 600_000, tree=False).seconds(16)[-1]
    assert took[middle] == 0 < all_well[middle]
    assert network.seconds(16, frozenset(range(16))) == (0.0,) * 16


FILE = """
send_us = 200
[[link]]
between = ["*", "*"]
mbit = 100
ms = 1
[[link]]
between = ["gateway", "b"]
mbit = 1000
ms = 0.1
"""
SERVERS = [WorkerEndpoint("grpc", host, 8001) for host in "abc"]


def test_a_file_of_links_is_read_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "links.toml").write_text(FILE)
    links = read_links(tmp_path / "links.toml", SERVERS)
    assert links.bytes_per_s[0][2] == links.bytes_per_s[2][0] == 125e6
    assert links.bytes_per_s[1][2] == 12.5e6
    assert (links.latency_s[2][0], links.latency_s[3][0], links.send_s) == (1e-4, 1e-3, 2e-4)
    (tmp_path / "again.toml").write_text(links_text(links))
    assert read_links(tmp_path / "again.toml", SERVERS) == links
    tables = [{"between": ["*", "*"], "mbit": 8, "ms": 1}]
    (tmp_path / "links.json").write_text(json.dumps({"link": tables}))
    assert read_links(tmp_path / "links.json", SERVERS).bytes_per_s[3][1] == 1e6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[link]]\nbetween=["gateway","*"]\nmbit=1\nms=1', "says nothing of a:8001 and b:8001, expected a [[link]]"),
        ('[[link]]\nbetween=["gateway","d"]\nmbit=1\nms=1', "'d' is no host, expected one of gateway, a, b, c"),
        ('[[link]]\nbetween=["*","*"]\nmbit=0\nms=1', "mbit is 0, expected a number of at least 0.001"),
        ('[[link]]\nbetween=["*","*"]\nmbit=1\nms=-1', "ms is -1, expected a number of at least 0"),
        ('[[link]]\nbetween=["*","*"]\nmbit=1\nms=nan', "ms is nan, expected a number"),
        ('[[link]]\nbetween=["*","*"]\nmbit=1', "a [[link]] has between, mbit, expected between, mbit and ms"),
        ('[[link]]\nbetween="*"\nmbit=1\nms=1', "between is '*', expected two names of hosts"),
        ("[link]\n", "expected tables [[link]]"),
        ("speed=1", "'speed' is unknown, expected send_us, receive_us and tables [[link]]"),
        ("[[link", "is no TOML"),
    ],
)
def test_a_wrong_file_of_links_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "links.toml").write_text(text)
    with pytest.raises(InputError, match=r"^.*$") as refused:
        read_links(tmp_path / "links.toml", SERVERS)
    assert message in str(refused.value)


def command(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, args)])
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out, err


def test_place_prints_a_tree_that_serve_takes(capsys, tiny_bundle: Path, tmp_path: Path) -> None:
    links, workers = tmp_path / "links.toml", tmp_path / "workers"
    urls = [f"grpc://h{number}:1" for number in range(10)]
    text = 'send_us = 0\nreceive_us = 0\n[[link]]\nbetween = ["*", "*"]\nmbit = {}\nms = 0\n'
    links.write_text(text.format(0.1))  # 768 bytes take 61 ms
    code, out, _ = command(capsys, "place", tiny_bundle, *urls, "--tree", "--links", links)
    assert code == 0
    workers.write_text(out)
    devices = parse_workers([], workers, Security()).devices
    n_via = sum(device.endpoint is not None and device.endpoint.relaying is not None for device in devices)
    assert n_via == out.count(" via ") > 0
    assert "# tree: an input of 768 bytes is at the last host and back in " in out
    links.write_text(text.format(10_000).replace("receive_us = 0", "receive_us = 400"))
    code, out, _ = command(capsys, "place", tiny_bundle, *urls, "--tree", "--links", links)
    assert (code, " via " in out) == (0, False)
    assert "# no tree: an input of 768 bytes is sent to all hosts and back in " in out


@pytest.mark.parametrize(
    ("urls", "options", "message"),
    [
        (
            ("grpc://a:1", "grpc://b:1"),
            ("--tree",),
            "expected --tree with --links FILE or with --measure, or --measure alone",
        ),
        (("grpc://a:1", "http://b:1"), ("--tree", "--links", "{links}"), "http://b:1 hands nothing on, expected nodes"),
        (("grpc://a:1", "grpc://b:1"), ("--tree", "--links", "nowhere"), "nowhere cannot be read: No such file"),
    ],
)
def test_a_tree_that_cannot_be_is_one_line(
    capsys, tiny_bundle: Path, tmp_path: Path, urls: tuple[str, ...], options: tuple[str, ...], message: str
) -> None:
    (tmp_path / "links").write_text('[[link]]\nbetween = ["*", "*"]\nmbit = 1\nms = 0\n')
    code, out, err = command(
        capsys, "place", tiny_bundle, *urls, *(option.format(links=tmp_path / "links") for option in options)
    )
    assert (code, err.count("\n")) == (2, 1), out
    assert message in err


def test_plan_simulates_hosts_with_a_tree_and_without(capsys, tiny_bundle: Path, tmp_path: Path) -> None:
    links = tmp_path / "links.toml"
    links.write_text('send_us = 0\nreceive_us = 0\n[[link]]\nbetween = ["*", "*"]\nmbit = 0.1\nms = 0\n')
    args = ("plan", tiny_bundle, "--latency", "p50=2,p99=3", "--links", links, "--requests", 100, "--quiet")
    code, out, _ = command(capsys, *args)
    assert code == 0
    assert "with a tree:" in out
    found = json.loads(command(capsys, *args, "--json")[1])
    size = sum(spec.bytes for spec in Bundle.open(tiny_bundle).manifest.inputs)
    last_s = 10 * size / (0.1e6 / 8)  # one copy of every class: a request waits for the last host
    assert found["expected"][0]["p50"] == pytest.approx(last_s + 0.002, rel=0.02)
    assert found["expected_with_a_tree"][0]["p50"] < 0.6 * last_s
    links.write_text('[[link]]\nbetween = ["*", "*"]\nmbit = 10000\nms = 0\n')
    out = command(capsys, *args)[1]
    assert "no tree: an input of 768 bytes" in out.replace("\n", " ")
    assert "with a tree:" not in out


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (
            ("0-4=grpc://a:1 via grpc://b:1", "5-9=grpc://b:1 via grpc://a:1"),
            "the tree has a loop: grpc://a:1 via grpc",
        ),
        (("0-9=grpc://a:1 via grpc://a:1",), "the tree has a loop: grpc://a:1 via grpc://a:1"),
        (("0-9=grpc://a:1 via grpc://b:1",), "grpc://a:1 via grpc://b:1: no worker is there"),
        (
            ("0=grpc://a:1", "1-9=grpc://a:1 via grpc://b:1"),
            "grpc://a:1 is reached in two ways, expected one: directly",
        ),
        (("0-9=http://a:1 via grpc://b:1",), "http://a:1 via grpc://b:1: expected two nodes"),
        (("0-9=cpu via grpc://b:1",), "'cpu' is no server"),
        (("0-9=grpc://a:1 via ",), "'grpc://a:1 via' is no server"),
        (("relay inputs from 1 bytes in pieces of 10", "*=cpu"), "the latter at least 1024"),
        (("relay some inputs", "*=cpu"), "line is 'relay some inputs', expected relay inputs from BYTES bytes in"),
        (("relay inputs from 1 bytes in pieces of 2000",) * 2, "is the second such line, expected one"),
    ],
)
def test_a_map_that_is_no_tree_is_one_line(specs: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=r"^.*$") as refused:
        parse_workers(specs, None, Security())
    assert message in str(refused.value)


def test_a_map_says_who_hands_what_on() -> None:
    lines = ("0-4=grpc://a:1", "5-9=grpc://b:1 via grpc://a:1", "relay inputs from 5000 bytes in pieces of 2000")
    a, b = parse_workers(lines, None, Security()).devices
    assert a.endpoint is not None
    assert b.endpoint is not None
    assert a.endpoint.relaying is None
    assert b.endpoint.relaying == Relaying("grpc://a:1", 5000, 2000)
