"""Results that are there at once or must be awaited, as every layer between a connection and the workers gives them.

A request whose subnets run on the event loop's own thread is answered without a wait, and a task or a future for it
would cost more than a small model. So each of these layers has two functions: ``begin`` gives the result if it is there
at once, else a coroutine that the caller must await; ``infer`` awaits that coroutine for the caller.
"""

from __future__ import annotations

from collections.abc import Coroutine
from types import CoroutineType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from typing_extensions import TypeIs

_T = TypeVar("_T")
MaybePending: TypeAlias = _T | Coroutine[Any, Any, _T]
"""A result, or the coroutine that gives it. A coroutine must be awaited, and not be cancelled before it is."""


def is_pending(result: MaybePending[_T]) -> TypeIs[Coroutine[Any, Any, _T]]:
    """Whether the result must be awaited."""
    return type(result) is CoroutineType
