"""The `sensai` command: composes the stages, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 it ran and failed, 2 the arguments or the input are wrong. Each stage is imported when one of its
commands runs, so `sensai serve` never imports torch and `sensai --help` imports next to nothing.
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer

from sensai_serve import __version__, user_code
from sensai_serve.cli import (
    bench,
    bundle,
    check,
    compare,
    export,
    inspect,
    node,
    place,
    plan,
    predict,
    prune,
    replay,
    report,
    serve,
    train,
)
from sensai_serve.cli.ahead import trial_ahead
from sensai_serve.cli.options import Commands
from sensai_serve.errors import InputError, SensaiError

TRACEBACK = "--traceback"
"""The option that prints all of an error; taken out wherever it stands."""

app = typer.Typer(
    name="sensai",
    help="Class-parallel inference: cut a classifier into one small subnet per class, serve them side by side.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    cls=Commands,
)
# In the order in which `sensai --help` lists them.
COMMANDS = (train, prune, export, bundle, report, compare, inspect,
            serve, predict, replay, node, check, place, plan, bench)  # fmt: skip
for part in COMMANDS:
    app.registered_commands.extend(part.app.registered_commands)
    app.registered_groups.extend(part.app.registered_groups)


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"sensai-serve {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option(TRACEBACK, help="Print the whole traceback of an error; may stand anywhere.")
    ] = False,
) -> None:
    pass


def main(args: list[str] | None = None) -> Any:
    """Run the command line; errors that are the user's to mend are one line on stderr."""
    given = list(sys.argv[1:] if args is None else args)
    whole = TRACEBACK in given
    try:
        user_code.refuse_hidden_packages()
        arguments = [argument for argument in given if argument != TRACEBACK]
        with trial_ahead(arguments):
            return app(args=arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if whole:
            traceback.print_exception(error)
        _say(error)


def _say(error: Exception) -> NoReturn:
    """End with one line about an error; raise it again where it is nobody's but ours."""
    if isinstance(error, SensaiError):
        _fail_if_missing(error.__cause__)  # a plugin of ours whose libraries are another extra
        _fail(str(error), 2 if isinstance(error, InputError) else 1)
    _fail_if_missing(error)
    if theirs := user_code.describe(error):
        _fail(f"{theirs}; {TRACEBACK} prints the rest", 2)
    if isinstance(error, OSError):  # a path that cannot be read or written, a port that is taken, a disk that is full
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", 2 if error.filename else 1)
    raise error


_EXTRA_OF = {
    "torch": "offline",
    "torch_pruning": "offline",
    "sklearn": "offline",
    "k_means_constrained": "offline",
    "onnx": "bundle",
    "onnxscript": "offline",
    "safetensors": "offline",
    "fastapi": "serve",
    "fastapi_offline": "serve",
    "uvicorn": "serve",
    "orjson": "serve",
    "pydantic": "serve",
    "pydantic_settings": "serve",
    "prometheus_client": "serve",
    "uvloop": "serve",
    "httptools": "serve",
    "websockets": "serve",
    "tritonclient": "grpc",
    "grpc": "grpc",
    "grpc_health": "grpc",
    "grpc_reflection": "grpc",
    "pygrpc_native": "grpc-native",
    "matplotlib": "bench",
    "ray": "ray",
}


def _fail_if_missing(error: BaseException | None) -> None:
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if (extra := _EXTRA_OF.get(missing)) is not None:
        _fail(f"{missing} is not installed, expected it for this command: pip install 'sensai-serve[{extra}]'", 2)


def _fail(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"sensai: error: {' '.join(message.split())}\n")
    sys.exit(code)
