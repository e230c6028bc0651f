"""Command line options made of what a recipe or settings declare, and those that several commands share."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from typer.core import TyperGroup

from sensai_serve import plugins
from sensai_serve.errors import InputError
from sensai_serve.options import Option, plain

Device = Annotated[str, typer.Option(help="Where torch computes: cpu, cuda:0, ...")]
Devices = Annotated[
    list[str], typer.Option(help="Where torch computes: cpu, cuda:0, ...; give it again to deal subnets over several.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of torch; as many as pay where not given.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
WorkerCa = Annotated[Path | None, typer.Option(metavar="PEM", help="Certificates that nodes' must be signed by.")]
WorkerCert = Annotated[
    Path | None, typer.Option(metavar="PEM", help="Certificate to show nodes that ask for one (mutual TLS).")
]
WorkerKey = Annotated[Path | None, typer.Option(metavar="PEM", help="The private key of that certificate.")]
WorkerTokenFile = Annotated[Path | None, typer.Option(metavar="FILE", help="File with the token that nodes ask for.")]

_Command = TypeVar("_Command", bound=Callable[..., Any])
_DECLARED = "__declared_options__"
_INTERRUPTED = {
    "train": "the same command goes on where it was, to the same weights",
    "prune": "the same command goes on where it was, to the same subnets",
    "compare": "the same command goes on where it was, to the same networks",
    "export": "nothing was written; the same command starts again",
}
"""How to go on with a command that Ctrl-C ended, where it is not obvious."""


def takes(declared: Callable[[], Iterable[Option]], *, complete: bool = False) -> Callable[[_Command], _Command]:
    """Give a command the options that a recipe or settings declare, after those of its own signature.

    The command gets those that were given in ``**options``, by their names. They are read when the command is run or
    asked for its help: until then nothing is imported for them.

    Args:
        declared: gives the options; those without a flag are passed over.
        complete: an option without a default has to be given.
    """

    def declare(command: _Command) -> _Command:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        setattr(command, "__signature__", signature.replace(parameters=own))  # noqa: B010 - mypy knows no such attribute
        setattr(command, _DECLARED, (declared, complete))
        return command

    return declare


class Commands(TyperGroup):
    """A group whose commands get their declared options when one of them is called, and that says how to go on."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Ctrl-C ends it with exit code 130."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _interrupted(ctx.invoked_subcommand)
        except Exception as error:
            if not _came_of_an_interrupt(error):
                raise
            _interrupted(ctx.invoked_subcommand)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that the arguments name, with all of its options."""
        name, command, rest = super().resolve_command(ctx, args)
        original: Any = getattr(command, "callback", None)
        if name is None or not hasattr(original, _DECLARED):
            return name, command, rest
        return name, complete_command(name, inspect.unwrap(original)), rest


def complete_command(name: str, command: Callable[..., Any]) -> Any:
    """The click command of a function that `takes` declared options."""
    declared, complete = getattr(command, _DECLARED)
    options = {option.name.replace(".", "__"): option for option in declared() if option.flag is not None}
    signature = inspect.signature(command)
    own = list(signature.parameters.values())

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        values = {key: given.pop(key) for key in options}
        said = {
            options[key].name: _read(options[key], value) for key, value in values.items() if value not in (None, [])
        }
        return command(**given, **said)

    made = [_parameter(key, option, option.required and complete) for key, option in options.items()]
    parameters = sorted([*own, *made], key=lambda p: p.kind)  # positional ones stay first
    setattr(run, "__signature__", signature.replace(parameters=parameters))  # noqa: B010
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name)(run)
    return typer.main.get_command(app)


def _came_of_an_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: an extension module that it hits while it is imported raises ImportError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _interrupted(command: str | None) -> NoReturn:
    if (advice := _INTERRUPTED.get(command or "")) is not None:
        sys.stderr.write(f"\nsensai: interrupted; {advice}\n")
    raise typer.Exit(130)


def select(options: Iterable[Option], *names: str) -> tuple[Option, ...]:
    """Those of some options that have these names, in that order."""
    by_name = {option.name: option for option in options}
    return tuple(by_name[name] for name in names)


def _parameter(key: str, option: Option, required: bool) -> inspect.Parameter:
    listed = option.several and option.kind is str
    kind: Any = list[str] if listed else str if option.several else option.kind
    spelled = f"{option.flag}/--no-{option.flag.removeprefix('--')}" if kind is bool and option.flag else option.flag
    about = typer.Option(
        spelled or "",
        help=_help(option),
        metavar=option.metavar or None,
        show_default=option.default or False,
        rich_help_panel=option.section or None,
    )
    default = inspect.Parameter.empty if required else None
    given: Any = kind if required else kind | None
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[given, about])


def _help(option: Option) -> str:
    text = plain(option.text)
    if not option.plugins:
        return text
    return f"{text} One of {', '.join(plugins.available(option.plugins))}, or package.module:callable."


def _read(option: Option, value: Any) -> Any:
    """The value that was given, a list of numbers read; None where none was."""
    if not option.several or option.kind is str or value is None:
        return value or None if option.several else value
    try:
        return tuple(option.kind(part) for part in value.split(","))
    except ValueError:
        kind = "whole numbers" if option.kind is int else "numbers"
        raise InputError(f"{option.flag} is {value!r}, expected {kind}, say 0,1,3") from None
