"""The Chromium of this system without a window, driven over its DevTools protocol; nothing is downloaded."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from websockets.sync.client import ClientConnection, connect

from sensai_serve.errors import ServingError

NAMES = ("chromium", "chromium-browser", "google-chrome")
"""What a Chromium is called, here or there."""
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--remote-debugging-port=0",
)
_CONTROLS = frozenset(
    ("button", "checkbox", "combobox", "image", "link", "meter", "radio", "slider", "switch", "table", "textbox")
)
_START_S, _END_S = 30.0, 10.0
_REPLY_S = 60.0
_UNTIL = """new Promise((resolve) => {
  const deadline = performance.now() + %d;
  const look = () => {
    const found = (() => { try { return %s; } catch { return null; } })();
    if (found || performance.now() > deadline) resolve(found);
    else setTimeout(look, 10);
  };
  look();
})"""


def find_chromium() -> str | None:
    """The path of a Chromium; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name)) is not None), None)


class Page:
    """One page of a browser. See `opened_browser`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol (https://chromedevtools.github.io/devtools-protocol).

        Raises:
            ServingError: the browser refuses it.
        """
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=_REPLY_S))
            if message.get("id") != number:
                self._note(message)
            elif "error" in message:
                raise ServingError(f"the browser refuses {method}: {message['error']['message']}")
            else:
                result: dict[str, Any] = message["result"]
                return result

    def open(self, url: str) -> None:
        """Go to a page."""
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def reload(self) -> None:
        """Load the page anew, and wait until the new one is there."""
        before = self.evaluate("performance.timeOrigin")
        self.call("Page.reload")
        self.until(f"performance.timeOrigin !== {before!r} && document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited where it is a promise.

        Raises:
            ServingError: it throws.
        """
        reply = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in reply:
            raise ServingError(f"{expression[:80]}: {_described(reply['exceptionDetails'])}")
        return reply["result"].get("value")

    def until(self, expression: str, seconds: float = 20.0) -> Any:
        """Wait until a JavaScript expression is true; its last value after so many seconds at most.

        The wait begins anew where the page is left meanwhile: loading a page anew takes a moment to begin.
        """
        wait = _UNTIL % (seconds * 1000, expression)
        try:
            return self.evaluate(wait)
        except ServingError as error:
            if "navigated" not in str(error):
                raise
            return self.evaluate(wait)

    def resize(self, width: int, height: int, *, scale: float = 1.0) -> None:
        """Change the size of the window, in CSS pixels, and how many pixels each is drawn with."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def prefer(self, scheme: Literal["light", "dark"]) -> None:
        """Change the colour scheme that the page is told its reader prefers."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def press(self, key: str) -> None:
        """Press a key such as ``Tab`` or ``Enter``."""
        text = {"Enter": "\r"}.get(key, "")
        number = {"Tab": 9, "Enter": 13}[key]
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, text=text, windowsVirtualKeyCode=number)

    def screenshot(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png", optimizeForSpeed=True)["data"])

    def complaints(self) -> list[str]:
        """Errors and warnings that the browser's console has shown so far."""
        self.evaluate("0")  # events that are on their way come before its reply
        return list(self._complaints)

    def nameless(self) -> list[str]:
        """Roles of controls and pictures that have no accessible name."""
        found = []
        for node in self.call("Accessibility.getFullAXTree")["nodes"]:
            role, name = node.get("role", {}).get("value"), node.get("name", {}).get("value", "")
            if role in _CONTROLS and not node.get("ignored") and not name.strip():
                found.append(str(role))
        return found

    def _note(self, event: dict[str, Any]) -> None:
        method, given = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self._complaints.append(_described(given["exceptionDetails"]))
        elif method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self._complaints.append(f"{given['entry']['text']} {given['entry'].get('url', '')}".strip())
        elif method == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning", "assert"):
            self._complaints.append(" ".join(str(each.get("value", "")) for each in given["args"]))


@contextlib.contextmanager
def opened_browser(path: str) -> Iterator[Page]:
    """A browser with one empty page, until the block ends.

    Args:
        path: the browser; see `find_chromium`.

    Raises:
        ServingError: it does not start.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [path, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                with connect(_first_page(process, Path(profile)), max_size=None) as socket:
                    page = Page(socket)
                    try:
                        yield page
                    finally:
                        with contextlib.suppress(Exception):  # it may close before it answers
                            page.call("Browser.close")
            finally:
                try:
                    process.wait(_END_S)
                except subprocess.TimeoutExpired:
                    process.kill()


def _first_page(process: subprocess.Popen[bytes], profile: Path) -> str:
    """The address of the page's socket; the browser writes its port to a file of its profile."""
    stop = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < stop:
        with contextlib.suppress(OSError, ValueError, StopIteration):
            port = int((profile / "DevToolsActivePort").read_text().partition("\n")[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=_END_S) as reply:
                targets = json.load(reply)
            return str(next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page"))
        time.sleep(0.02)
    raise ServingError("the browser did not start")


def _described(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details.get("text"))
