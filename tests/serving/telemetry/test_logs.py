"""The log: JSON or text, every line with the id of its request, which the reply carries too."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator

import httpx
import pytest

from serving.telemetry.controls import LogFilter
from serving.telemetry.logs import configure


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[str]]]:
    """Gives the lines that the log has written since the last call; the loggers are as they were afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("serving")
    before = root.level, root.handlers[:], ours.level
    root.handlers = []  # else `configure` would close pytest's own

    def lines() -> list[str]:
        return capsys.readouterr().err.splitlines()

    yield lines
    root.handlers = before[1]
    root.setLevel(before[0])
    ours.setLevel(before[2])


def test_json_lines_carry_request_ids_that_replies_carry_too(run_server, tiny_bundle, written) -> None:
    with run_server(tiny_bundle, access_log=True) as server:
        configure("json", LogFilter())
        for path, given in (("/v2/health/live", "mine"), ("/v2/models/tiny/infer", "yours"), ("/v2", None)):
            headers = {} if given is None else {"X-Request-ID": given}
            response = httpx.request("POST" if path.endswith("infer") else "GET", server.url + path, headers=headers)
            name = response.headers["x-request-id"]
            assert given in (None, name)
            line = json.loads(written()[-1])
            assert (line["request_id"], line["logger"], line["level"]) == (name, "serving.access", "info")
            assert line["message"].endswith(f"{path} {response.status_code}")
            assert line["milliseconds"] > 0
        bad = httpx.get(f"{server.url}/v2", headers={"X-Request-ID": "x" * 200})
        assert bad.headers["x-request-id"] != "x" * 200


def test_an_unforeseen_error_is_found_by_its_request_id(run_server, tiny_bundle, written, monkeypatch) -> None:
    with run_server(tiny_bundle) as server:
        configure("json", LogFilter())

        def broken(*_: object) -> None:
            raise ZeroDivisionError("why")

        monkeypatch.setattr(server.repository, "get", broken)
        response = httpx.post(f"{server.url}/v2/models/tiny/infer", content=b"{}")
        line = json.loads(written()[-1])
        assert (response.status_code, response.json()) == (500, {"error": "internal error"})
        assert line["request_id"] == response.headers["x-request-id"]
        assert "ZeroDivisionError: why" in line["exception"]


def test_text_and_what_is_written(written) -> None:
    wanted = LogFilter()
    configure("text", wanted)
    log = logging.getLogger("serving.test")
    log.debug("hidden")
    log.info("hello", extra={"worker": 3})
    wanted.settings = wanted.settings.changed({"log_info": False, "log_verbose_level": 1})
    log.info("hidden too")
    log.debug("shown")
    logging.getLogger("somebody").info("else")
    assert [line.split(" ", 2)[2] for line in written()] == [
        "INFO serving.test: hello worker=3",
        "DEBUG serving.test: shown",
    ]
