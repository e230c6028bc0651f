"""Options are described once: help, recipe files, the environment and the documentation say the same."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from pruning.recipe import Recipe, read_recipe, recipe_options
from sensai_serve.cli.main import app
from sensai_serve.cli.options import complete_command, takes
from sensai_serve.cli.tables import filled, option_table, pages
from sensai_serve.errors import InputError
from sensai_serve.options import Flag, Range
from serving.engine.options import Inference
from serving.settings import Settings, settings_options

PROJECT = Path(__file__).parents[3]


@dataclass(frozen=True)
class SharperRecipe(Recipe):
    """A recipe with one more option."""

    sharp_edges: Annotated[float, Range(0, 1)] = 0.5
    """Fraction of the edges that are kept ``sharp``."""


class SharperInference(Inference):
    """One more setting in a group."""

    sharp_edges: Annotated[tuple[int, ...], Flag(metavar="EDGES")] = (1, 2)
    """Edges that are kept ``sharp``."""


class SharperSettings(Settings):
    """Settings with one more."""

    inference: SharperInference = SharperInference()
    """How requests are answered."""


def run(declared: Any, *arguments: str) -> str:
    """What a command with these options prints that is called with these arguments."""

    @takes(declared)
    def sharpen(**options: Any) -> None:
        typer.echo(repr(options))

    result = CliRunner().invoke(typer_app(sharpen), arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def typer_app(command: Any) -> typer.Typer:
    wrapped = typer.Typer()
    wrapped.command()(complete_command("sharpen", command).callback)
    return wrapped


def test_an_option_of_the_recipe_is_declared_in_one_place(tmp_path: Path) -> None:
    declared = lambda: recipe_options(SharperRecipe)  # noqa: E731
    shown = run(declared, "--help")
    assert "--sharp-edges" in shown
    assert "Fraction of the edges that are kept sharp." in shown
    assert "(0.5)" in shown
    assert run(declared, "--sharp-edges", "0.25").strip() == "{'sharp_edges': 0.25}"
    assert run(declared, "--uneven", "--offsets", "0,1").strip() == "{'offsets': (0, 1), 'uneven': True}"
    (tmp_path / "r.toml").write_text("data = 'wine'\nmodel = 'mlp'\nsharp_edges = 1\n")
    recipe = SharperRecipe.from_json(read_recipe(tmp_path / "r.toml", SharperRecipe))
    assert recipe.to_json()["sharp_edges"] == 1.0
    with pytest.raises(InputError, match="sharp_edges is 2, expected 0 to 1"):
        SharperRecipe("wine", "mlp", sharp_edges=2)
    row = "| `sharp_edges` | `--sharp-edges` | `0.5` | Fraction of the edges that are kept `sharp`. |"
    assert row in option_table(declared(), "recipe").splitlines()


def test_a_setting_is_declared_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = lambda: settings_options(SharperSettings)  # noqa: E731
    shown = run(declared, "--help")
    assert "--sharp-edges" in shown
    assert "Edges that are kept sharp." in shown
    assert run(declared, "--sharp-edges", "3,4").strip() == "{'inference.sharp_edges': (3, 4)}"
    monkeypatch.setenv("SENSAI_INFERENCE__SHARP_EDGES", "[5]")
    assert SharperSettings().inference.sharp_edges == (5,)
    variable = "SENSAI_INFERENCE__SHARP_EDGES"
    row = f"| `inference.sharp_edges` | `--sharp-edges` | `{variable}` | `1,2` | Edges that are kept `sharp`. |"
    assert row in option_table(declared(), "setting").splitlines()


@pytest.mark.parametrize("options", [recipe_options(), settings_options()], ids=["recipe", "settings"])
def test_every_option_says_what_it_is_and_no_two_have_one_flag(options: Any) -> None:
    for option in options:
        assert option.text[0].isupper(), option.name
        assert option.text.endswith("."), option.name
    flags = [option.flag for option in options if option.flag]
    assert len(set(flags)) == len(flags)


def test_the_documentation_has_the_tables_that_the_options_make() -> None:
    found = pages(PROJECT)
    assert {"pruning.md", "operating.md"} <= {page.name for page in found}
    for page in found:
        assert page.read_text() == filled(page.read_text()), f"{page}: run `make docs-tables`"


def test_a_table_that_there_is_not_is_refused() -> None:
    with pytest.raises(InputError, match="there is no table 'colours', expected one of bundle, recipe, settings"):
        filled("<!-- table: colours -->\n<!-- end of table -->")


def test_two_ways_to_say_how_much_is_cut_are_refused() -> None:
    result = CliRunner().invoke(app, ["prune", "--weights", "w", "--dry-run", "--macs", "0.1", "--channels", "0.5"])
    assert isinstance(result.exception, InputError)
    assert str(result.exception) == "--macs and --channels: expected one of them"


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        ("--help", "torch onnxruntime fastapi pydantic grpc PIL pruning serving export benchmarks"),
        ("prune --help", "torch onnxruntime fastapi grpc sklearn serving export benchmarks"),
        ("train --help", "torch onnxruntime fastapi grpc sklearn serving export benchmarks"),
        ("serve --help", "torch onnxruntime fastapi grpc pruning export benchmarks"),
    ],
)
def test_help_is_light(arguments: str, heavy: str) -> None:
    code = f"""import sys
from sensai_serve.cli.main import main
try:
    main({arguments.split()})
except SystemExit as ended:
    assert ended.code == 0
sys.stderr.write(" ".join(name for name in {heavy.split()} if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "Usage:" in done.stdout


def test_an_interrupt_that_an_import_turned_into_an_error_is_an_interrupt(monkeypatch) -> None:
    def imports(*_: Any) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            raise ImportError("initialization failed") from interrupt  # as pybind11 does

    monkeypatch.setattr("typer.core.TyperGroup.invoke", imports)
    result = CliRunner().invoke(app, ["export", "run"])
    assert result.exit_code == 130
