"""``sensai plan``: what to expect of a bundle on many hosts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sensai_serve.cli.options import Quiet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from sensai_serve.bundles import Bundle
    from serving.placement.host_network import HostNetwork
    from serving.planning import Expected

app = typer.Typer()

TREE = "with a tree"
"""What `sensai plan` calls rows of hosts that hand inputs on."""
DIRECT = "sent to all hosts"
"""What `sensai plan` calls rows of a gateway that sends to each host."""


@app.command()
def plan(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory of the bundle.")],
    *,
    latency: Annotated[
        str,
        typer.Option(
            metavar="p50=MS,p99=MS",
            help="Latency of one worker (of existing files the slowest) as the gateway sees it: "
            "p50=2ms,p99=8ms[,stragglers=0.01,slow=10,own=300us].",
        ),
    ],
    hosts: Annotated[int, typer.Option(min=1, help="Machines to spread the workers over.")] = 10,
    loss: Annotated[float, typer.Option(help="Probability that a machine is down.")] = 0.001,
    patience: Annotated[
        float, typer.Option(min=0, help="Give a straggler up after this many times what healthy workers take.")
    ] = 4.0,
    wait: Annotated[str | None, typer.Option(help="What requests wait for, as for serve.")] = None,
    wave: Annotated[
        str | None, typer.Option(metavar="0,1,...", help="Workers to ask at a time, as for serve; all if not given.")
    ] = None,
    links: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File of links, as for place, to hosts host-1, host-2, ...: their time comes on top of the latency, "
            "with a tree and without.",
        ),
    ] = None,
    requests: Annotated[int, typer.Option(min=100, help="Requests to simulate at each redundancy.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    quiet: Quiet = False,
) -> None:
    """Simulate a bundle on many hosts: latency, availability and cost for one to five copies of every class."""
    import json
    from dataclasses import asdict
    from functools import partial

    from rich.console import Console

    from sensai_serve.bundles import Bundle
    from sensai_serve.cli.progress import progress
    from sensai_serve.merge import parse_wait
    from serving.placement.host_network import tree_worth
    from serving.planning import Simulation, parse_latency, simulate

    opened = Bundle.open(bundle)
    merge = opened.manifest.merge
    waits = merge.default_wait if wait is None else parse_wait(wait)
    sizes = _sizes(wave) or (merge.wave if waits == "confident" else ())
    ways: dict[str, HostNetwork | None] = {"": None} if links is None else _ways(opened, links, hosts)
    simulations = {
        way: Simulation(
            opened,
            parse_latency(latency),
            hosts=hosts,
            loss=loss,
            patience=patience,
            wait=waits,
            wave=sizes,
            network=network,
            seed=seed,
        )
        for way, network in ways.items()
    }
    with progress(quiet=quiet) as report:
        found = {}
        for way, simulation in simulations.items():
            step = partial(report, f"simulate {way}".strip())
            found[way] = simulate(simulation, requests, step)
    simulation = next(iter(simulations.values()))
    out, back = simulation.bytes_per_input()
    own, on_one = opened.assignment.redundancy, simulation.runs_on_one_device()
    if as_json:
        bundle_says = {"bytes_out": out, "bytes_back": back, "redundancy": own, "runs_on_one_device": asdict(on_one)}
        keys = {TREE: "expected_with_a_tree"}
        expected = {keys.get(way, "expected"): [asdict(row) for row in rows] for way, rows in found.items()}
        typer.echo(json.dumps(bundle_says | expected))
        return
    console = Console(highlight=False)
    for way, rows in found.items():
        if (network := ways[way]) is not None:
            console.print(f"{way}:" if network.tree else tree_worth(network.plan(rows[-1].hosts), network.size))
        console.print(_expected(rows, own, asked=bool(sizes)))
    last = next(iter(found.values()))[-1]
    console.print(
        f"* the bundle's. {last.workers} workers on {last.hosts} hosts; one input is {out:,} bytes to them "
        f"and {back:,} back; {requests:,} requests each"
    )
    if on_one.by_id < (n_workers := len(opened.manifest.subnets)):
        console.print(
            f"on one device {on_one.chosen:.1f} of {n_workers} workers run until there is an answer; "
            f"in the order of their ids {on_one.by_id:.1f} would"
        )


def _ways(opened: Bundle, links: Path, hosts: int) -> dict[str, HostNetwork | None]:
    """The networks to simulate: without a tree and, where one is faster, with it."""
    from serving.placement.host_network import HostNetwork
    from serving.placement.links import read_links
    from serving.runtime.endpoint import WorkerEndpoint

    joined = read_links(links, [WorkerEndpoint("grpc", f"host-{number}", 8001) for number in range(1, hosts + 1)])
    size = sum(spec.bytes for spec in opened.manifest.inputs)
    trees = HostNetwork(joined, size, tree=True)
    found: dict[str, HostNetwork | None] = {DIRECT: HostNetwork(joined, size, tree=False)}
    if not trees.plan(min(hosts, len(opened.manifest.subnets))).is_direct:
        found[TREE] = trees
    return found


def _expected(rows: Sequence[Expected], own: int, *, asked: bool) -> Table:
    """A table of what to expect, a row for each redundancy."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("copies", no_wrap=True)
    in_waves = ("asked",) if asked else ()
    for heading in ("hosts lost", "p50 ms", "p99 ms", "p99.9 ms", "early", *in_waves, "available", "cost"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        times = [f"{1000 * seconds:.2f}" for seconds in (row.p50, row.p99, row.p999)]
        mine = " *" if row.redundancy == own else ""
        shares = (
            f"{row.early:.0%}",
            *((f"{row.asked:.1f}",) if asked else ()),
            _nines(row.unavailable),
            f"{row.cost:.1f}x",
        )
        table.add_row(f"{row.redundancy}{mine}", f"any {row.losses}", *times, *shares)
    return table


def _sizes(text: str | None) -> tuple[int, ...]:
    from sensai_serve.errors import InputError

    try:
        return () if text is None else tuple(map(int, text.split(",")))
    except ValueError:
        raise InputError(f"--wave is {text!r}, expected whole numbers, say 2 or 2,8") from None


def _nines(unavailable: float) -> str:
    """Availability in percent, with two significant digits of what is missing to 100%."""
    from math import floor, log10

    if unavailable <= 0:
        return "100%"
    if unavailable < 1e-9:
        return "> 99.9999999%"
    digits = max(0, 1 - floor(log10(unavailable)) - 2)
    return f"{100 * (1 - unavailable):.{min(digits, 12)}f}%"
