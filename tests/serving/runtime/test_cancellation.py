"""Loading that is given up while sessions are still being opened."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sensai_serve.errors import BundleError
from serving.runtime.cancellation import Cancellation


@pytest.fixture
def restless() -> Iterator[None]:
    """Have threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("restless")
def test_every_run_ends_while_another_thread_still_opens_sessions() -> None:
    for _ in range(20):
        cancellation, opened, many = Cancellation(), list[Any](), threading.Event()

        def open_sessions(cancellation: Cancellation, opened: list[Any], many: threading.Event) -> None:
            with pytest.raises(BundleError, match="given up"):
                while True:
                    opened.append(cancellation.run_options())
                    if len(opened) == 3000:
                        many.set()

        thread = threading.Thread(target=open_sessions, args=(cancellation, opened, many))
        thread.start()
        assert many.wait(60)
        try:
            cancellation.cancel()
        finally:
            thread.join()
        assert all(options.terminate for options in opened)
