"""Runs a server's event loop, after which the process ends even if a thread hangs."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

import uvloop

from sensai_serve.errors import InputError

EXIT_S = 1.0
"""Seconds that threads have to end after the event loop, and the process after them."""
_log = logging.getLogger(__name__)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on an event loop of its own, on the main thread.

    `asyncio.to_thread` uses threads of this loop. Python waits for them when it ends, for ever where one hangs inside
    native code. So if one is left the process is ended `EXIT_S` later, with the exit code of the command line for what
    `main` raised.
    """
    executor, code = _Executor(), 1
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.get_loop().set_default_executor(executor)
            runner.run(main)
        code = 0
    except InputError:
        code = 2
        raise
    finally:
        if executor.hangs():
            _log.warning("a thread hangs and is left behind")
            ending = threading.Timer(EXIT_S, _end, [code])
            ending.daemon = True
            ending.start()


def _end(code: int) -> None:
    logging.shutdown()
    os._exit(code)


class _Executor(ThreadPoolExecutor):
    """Threads for work that blocks. One that hangs is left behind."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Drop what has not begun, and end the threads that do end within `EXIT_S`."""
        super().shutdown(wait=False, cancel_futures=True)
        end = monotonic() + EXIT_S
        for thread in self._threads:
            thread.join(max(0.0, end - monotonic()))

    def hangs(self) -> bool:
        """Whether a thread has not ended."""
        return any(thread.is_alive() for thread in self._threads)
