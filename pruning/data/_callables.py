"""A user's own function as a source, called with the options that it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from sensai_serve.errors import DataError


def call_source(place: str, function: Callable[..., Any], options: Mapping[str, str], seed: int) -> Any:
    """What `function` returns. Whatever it raises is passed on.

    Args:
        place: its ``package.module:callable``, for messages.
        function: called with the options by name, as text, and with ``seed`` where it has a parameter of that name.
        options: behind the source's question mark.
        seed: of the run.

    Raises:
        DataError: it takes no such option, or needs more.
    """
    given: dict[str, Any] = dict(options)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        parameters = None
    if parameters is not None:
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if (unknown := sorted(set(given) - set(parameters))) and not takes_all:
            raise DataError(f"{place}: has no parameter {unknown[0]!r}, expected one for each option")
        given |= {"seed": seed} if "seed" in parameters and "seed" not in given else {}
        needed = [
            name
            for name, p in parameters.items()
            if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and name not in given
        ]
        if needed:
            raise DataError(
                f"{place}: needs {', '.join(needed)}, expected a function of no more than options "
                f"(?{needed[0]}=...) and seed"
            )
    return function(**given)
