"""Signal handlers of the processes that serve.

SIGTERM, SIGINT and SIGQUIT stop it after its requests, and the second of them at once. SIGHUP loads anew. SIGUSR1 logs
the stack of every thread. SIGUSR2 is ignored.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_log = logging.getLogger(__name__)


def handle_signals(stop: asyncio.Event, reload: Callable[[], Awaitable[None]]) -> None:
    """Handle signals on the running event loop, which must be the main thread's.

    Args:
        stop: set by the first signal to stop; from then on such a signal ends the process at once.
        reload: called on SIGHUP. An error of it is logged.
    """
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    async def reload_logged() -> None:
        try:
            await reload()
        except Exception:
            _log.exception("loading anew failed")

    def start_reload() -> None:
        reloads.add(task := loop.create_task(reload_logged()))
        task.add_done_callback(reloads.discard)

    def begin_to_stop() -> None:
        stop.set()
        for number in STOPPING:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in STOPPING:
        loop.add_signal_handler(number, begin_to_stop)
    loop.add_signal_handler(signal.SIGHUP, start_reload)
    loop.add_signal_handler(signal.SIGUSR1, log_threads)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def log_threads() -> None:
    """Log the stack of every thread."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        stack = "".join(traceback.format_stack(frame)).rstrip()
        _log.info("thread %s:\n%s", names.get(ident, ident), stack)
