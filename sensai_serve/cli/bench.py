"""``sensai bench``: runs benchmarks. Each is a plugin of `benchmarks.suites` that brings its own options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from sensai_serve.plugins import available, find, summary

PACKAGE = "benchmarks.suites"


class _Benchmark(TyperCommand):
    """A benchmark's name and summary. Its own command is imported when it is run, or asked for its help."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return _command(str(self.name)).make_context(info_name, args, parent=parent, **extra)


class _Benchmarks(TyperGroup):
    """The commands of this file, and all benchmarks that are installed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted({*super().list_commands(ctx), *available(PACKAGE)})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        ours = super().get_command(ctx, cmd_name)
        if ours is None and (":" in cmd_name or cmd_name.replace("-", "_") in available(PACKAGE)):
            return _Benchmark(cmd_name, help="" if ":" in cmd_name else summary(PACKAGE, cmd_name))
        return ours


def _command(name: str) -> Any:
    """The command that typer makes of the benchmark's function."""
    benchmark = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    benchmark.command(name)(find(PACKAGE, name, "command"))
    return typer.main.get_command(benchmark)


app = typer.Typer()
bench = typer.Typer(
    cls=_Benchmarks,
    help="Run a benchmark: one that is listed here, or package.module:callable.",
    no_args_is_help=True,
)
app.add_typer(bench, name="bench")


@bench.command()
def data(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Data source, as `sensai prune --data` takes it.")],
    out: Annotated[Path, typer.Option(help="The .npz file to write: raw inputs x and their labels y.")],
    seed: Annotated[int, typer.Option(help="Seed that draws the test part of a source that has none.")] = 0,
) -> None:
    """Write the test part of a data source to a file that every benchmark's `--data` takes.

    The machine that runs the benchmark then needs neither the data source nor the offline extra.
    """
    from benchmarks.subjects.inputs import write_labelled
    from sensai_serve.cli.datasets import test_part

    x, y = test_part(source, seed=seed)
    write_labelled(out, x, y)
    typer.echo(f"{out}: {len(y)} labelled inputs")
