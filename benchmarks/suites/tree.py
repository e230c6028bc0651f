"""A broadcast tree over many hosts against a gateway that sends to each: the time to the last score, and lost relays.

Hosts are network namespaces of this machine, joined by a switch that gives each a link of a set rate, and processes of
``sensai node --relay``. The gateway runs in a namespace of its own, in this process. Needs root.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import uvloop

from benchmarks.harness import machine
from benchmarks.harness.switch import Switch, address_of, enter, switched
from benchmarks.options import Out, Quiet, publish
from benchmarks.reporting.report import BenchmarkReport
from benchmarks.subjects.nodes import NodeProcess
from benchmarks.subjects.noop import noop_bundle
from sensai_serve.bundles import Bundle
from sensai_serve.cli.progress import progress
from sensai_serve.errors import SensaiError
from sensai_serve.merge import Wait
from sensai_serve.progress import OnProgress
from sensai_serve.report import Row, Table
from serving.engine.gateway import Gateway
from serving.engine.options import GatewayOptions
from serving.engine.workers.health import State
from serving.placement.links import even_links
from serving.placement.tree import GATEWAY, TreePlan, children_of, plan_tree
from serving.placement.worker_map import parse_workers
from serving.runtime.endpoint import Security

SHAPE = 3, 224, 224
SMALL_BYTES = 3 * 32 * 32 * 4
CASES = ("killed", "slowed by 50 ms", "cut off")
PORT = 8001
LATENCY_US = 50.0
SETTLED_S = 3.0
"""Seconds after which a lost relay is known to be lost."""
BACK_S = 20.0
"""Seconds after which a relay that has not come back is given up."""
AIM = 0.5
"""The most that the time to the last score with a tree may be of that without."""
AIM_BACK_S = 5.0


def command(
    *,
    hosts: Annotated[int, typer.Option(min=2, max=200, help="Hosts, each with one worker.")] = 16,
    mbit: Annotated[float, typer.Option(min=1, help="Megabits per second of each link.")] = 1000.0,
    rounds: Annotated[int, typer.Option(min=3, help="Inputs each way, in turns.")] = 60,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of each phase with a lost relay.")] = 4.0,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Send inputs of 600 kB to hosts in network namespaces with a tree and without, then kill, slow and cut a relay."""
    with progress(quiet=quiet) as on_step:
        found = measure(hosts, mbit, rounds, seconds, on_step=on_step)
    publish(report(found), out)


def measure(
    hosts: int,
    mbit: float,
    rounds: int,
    seconds: float,
    cases: Sequence[str] = CASES,
    on_step: OnProgress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Run everything; once in a process, because gRPC's threads stay in the gateway's namespace.

    Args:
        hosts: number of hosts.
        mbit: megabits per second of each link.
        rounds: inputs with a tree and without.
        seconds: length of each phase of each case.
        cases: some of `CASES`.
        on_step: hears of progress.

    Returns:
        The machine, what was run, and the figures as plain data.

    Raises:
        ServingError: the machine has no network namespaces, or a node cannot start.
    """
    described = machine.describe()
    names = [str(host) for host in range(hosts)]
    links = even_links(names, mbit * 1e6 / 8, LATENCY_US / 1e6)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundle = noop_bundle(folder / "noop", n_workers=hosts, n_classes=hosts, shape=SHAPE, redundancy=min(3, hosts))
        size = sum(spec.bytes for spec in bundle.manifest.inputs)
        plan, small = plan_tree(links, size), plan_tree(links, SMALL_BYTES)
        switch = stack.enter_context(switched(hosts + 1, mbit, LATENCY_US))
        nodes = [stack.enter_context(_node(bundle.path, host, switch)) for host in range(hosts)]
        for done, node in enumerate(nodes):
            on_step("start hosts", done, hosts)
            node.start()
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        enter(switch.namespaces[0])
        try:
            figures = uvloop.run(_measure(bundle, plan, switch, nodes, rounds, seconds, cases, on_step))
        finally:
            enter(f"/proc/self/fd/{home}")
            os.close(home)
    planned = {"direct_ms": round(1e3 * plan.direct_s, 2), "tree_ms": round(1e3 * plan.seconds, 2),
               "bound_ms": round(1e3 * plan.bound_s, 2), "pieces": -(-size // plan.piece_bytes),
               "gateway_sends_to": len(children_of(plan.parent_of)[GATEWAY]), "is_direct": plan.is_direct,
               "small_is_direct": small.is_direct}  # fmt: skip
    return {"subject": f"{hosts}-hosts", "machine": described, "hosts": hosts, "mbit": mbit, "bytes": size,
            "rounds": rounds, "seconds": seconds, "aim": AIM, "planned": planned, **figures}  # fmt: skip


def report(found: dict[str, Any]) -> BenchmarkReport:
    """The report of what `measure` found."""
    planned, ways = found["planned"], found["ways"]
    rows: list[Row] = [
        (
            name,
            f"{planned[key]:.1f}",
            *(f"{1e3 * ways[way][q]:.1f}" for q in ("p50", "p90")),
            f"{ways[way]['sent']:.1f}",
        )
        for name, key, way in (("sent to every host", "direct_ms", "direct"), ("with a tree", "tree_ms", "tree"))
    ]
    note = (
        f"Milliseconds until the last of {found['hosts']} hosts' scores, inputs of {found['bytes']:,} bytes, links of "
        f"{found['mbit']:g} Mbit/s, {found['rounds']} inputs each way in turns. With a tree: {found['ratio']:.2f}x, at "
        f"most {found['aim']:g}x is aimed at. Inputs of {SMALL_BYTES:,} bytes: "
        f"{'no tree' if planned['small_is_direct'] else 'a tree, though none is aimed at'}."
    )
    tables = [Table("To the last score", ("", "planned", "p50", "p90", "inputs that the gateway sends"), rows, note)]
    if found["cases"]:
        rows = [
            (f"a relay {case}", f"{one['failed']} of {one['requests']:,}", *(f"{p:,.1f}" for p in one["p99_ms"]),
             f"{one['back_s']:.2f}" if one["back_s"] is not None else f"not in {BACK_S:g} s")
            for case, one in found["cases"].items()
        ]  # fmt: skip
        columns = ("", "failed", "p99 before", f"p99 first {SETTLED_S:g} s", "p99 then", "back, s")
        note = (
            "One request at a time, three copies of every class, p99 in milliseconds. Back: from the relay's recovery "
            f"until its worker is live and inputs go through it again; {AIM_BACK_S:g} s are aimed at."
        )
        tables.append(Table("A relay with others below it is lost under load", columns, rows, note))
    settings = {key: found[key] for key in ("hosts", "mbit", "bytes", "rounds", "seconds", "aim", "planned")}
    results = {"ways": ways, "ratio": found["ratio"], "cases": found["cases"]}
    return BenchmarkReport("tree", found["subject"], found["machine"], settings, results, tables)


@contextlib.contextmanager
def _node(bundle: Path, host: int, switch: Switch) -> Iterator[NodeProcess]:
    """A node that begins to start now; the gateway is host 0 of the switch."""
    within = ("nsenter", f"--net=/run/netns/{switch.namespaces[host + 1]}")
    options = ("--relay", "--no-trial", "--device", "cpu")
    node = NodeProcess(bundle, (host,), PORT, host=address_of(host + 1), options=options, within=within)
    node.begin()
    try:
        yield node
    finally:
        node.kill()


async def _measure(
    bundle: Bundle,
    plan: TreePlan,
    switch: Switch,
    nodes: Sequence[NodeProcess],
    rounds: int,
    seconds: float,
    cases: Sequence[str],
    on_step: OnProgress,
) -> dict[str, Any]:
    async with _gateway(bundle, plan, tree=False) as direct, _gateway(bundle, plan, tree=True) as tree:
        clients = {"direct": _Client(direct, bundle), "tree": _Client(tree, bundle)}
        for client in clients.values():
            for _ in range(5):  # connections and caches are warm
                await client.ask("all")
        took: dict[str, list[float]] = {name: [] for name in clients}
        sent: dict[str, int] = dict.fromkeys(clients, 0)
        for done in range(rounds):
            on_step("direct and tree", done, rounds)
            for name, client in clients.items():
                before = _sent_bytes()
                took[name].append(await client.ask("all"))
                sent[name] += _sent_bytes() - before
    size = sum(spec.bytes for spec in bundle.manifest.inputs)
    ways = {
        name: {"p50": float(np.quantile(found, 0.5)), "p90": float(np.quantile(found, 0.9)),
               "sent": sent[name] / rounds / size}
        for name, found in took.items()
    }  # fmt: skip
    figures: dict[str, Any] = {}
    for done, case in enumerate(cases):
        on_step("lost relays", done, len(cases))
        figures[case] = await _case(bundle, plan, switch, nodes, case, seconds)
    on_step("lost relays", len(cases), len(cases))
    return {"ways": ways, "ratio": round(ways["tree"]["p50"] / ways["direct"]["p50"], 3), "cases": figures}


async def _case(
    bundle: Bundle, plan: TreePlan, switch: Switch, nodes: Sequence[NodeProcess], case: str, seconds: float
) -> dict[str, Any]:
    below = children_of(plan.parent_of)
    hit = max(range(len(nodes)), key=lambda host: len(below[host]))
    async with _gateway(bundle, plan, tree=True) as gateway:
        client = _Client(gateway, bundle)
        await client.run(2.0)  # what is usual is known by now
        before_bytes, asked = _sent_bytes(), client.answered
        before = await client.run(seconds)
        usual = (_sent_bytes() - before_bytes) / max(1, client.answered - asked)
        if case == "killed":
            await asyncio.to_thread(nodes[hit].kill)
        else:
            switch.tell(f"cut {hit + 1}" if case == "cut off" else f"delay {hit + 1} 0.05")
        meanwhile = await client.run(SETTLED_S)
        after = await client.run(seconds)
        if case == "killed":
            await asyncio.to_thread(nodes[hit].start)
        switch.tell(f"pass {hit + 1}")
        healed = time.perf_counter()
        back_s: float | None = None
        while back_s is None and time.perf_counter() - healed < BACK_S:
            began = time.perf_counter()
            before_bytes, asked = _sent_bytes(), client.answered
            await client.run(0.25)
            each = (_sent_bytes() - before_bytes) / max(1, client.answered - asked)
            if gateway.workers[hit].state is State.LIVE and each < 1.2 * usual:
                back_s = began - healed
        return {
            "requests": client.answered + client.failed,
            "failed": client.failed,
            "p99_ms": [round(1e3 * float(np.quantile(phase, 0.99)), 2) for phase in (before, meanwhile, after)],
            "back_s": None if back_s is None else round(back_s, 2),
        }


@contextlib.asynccontextmanager
async def _gateway(bundle: Bundle, plan: TreePlan, *, tree: bool) -> AsyncIterator[Gateway]:
    urls = [f"grpc://{address_of(host + 1)}:{PORT}" for host in range(len(plan.parent_of))]
    lines = [
        f"{host}={url}{f' via {urls[plan.parent_of[host]]}' if tree and plan.parent_of[host] != GATEWAY else ''}"
        for host, url in enumerate(urls)
    ]
    if tree:
        lines.append(f"relay inputs from {plan.least_bytes} bytes in pieces of {plan.piece_bytes}")
    workers = parse_workers(lines, None, Security())
    gateway = Gateway(bundle, GatewayOptions(devices=workers.devices, workers=workers, backend="remote"))
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop(0)


class _Client:
    """One client that sends one input after the other to a gateway in this process."""

    def __init__(self, gateway: Gateway, bundle: Bundle) -> None:
        self.answered = self.failed = 0
        self._gateway = gateway
        self._inputs = bundle.golden().tensor

    async def ask(self, wait: Wait | None = None) -> float:
        """Send an input; the seconds until its answer."""
        at = (self.answered + self.failed) % len(self._inputs)
        started = time.perf_counter()
        await self._gateway.infer(self._inputs[at : at + 1], wait=wait)
        return time.perf_counter() - started

    async def run(self, seconds: float) -> list[float]:
        """Send inputs until the time is over; the latencies in seconds of those answered."""
        stop, found = time.perf_counter() + seconds, []
        while time.perf_counter() < stop:
            try:
                found.append(await self.ask())
            except SensaiError:
                self.failed += 1
            else:
                self.answered += 1
        return found


def _sent_bytes() -> int:
    """Bytes that this thread's namespace has sent over its link."""
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "link":
            return int(numbers.split()[8])
    return 0
