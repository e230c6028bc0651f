"""The log: JSON or text, every line with the id of its request, which the reply carries too."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.telemetry.controls import LogFilter
from serving.telemetry.logs import TextFormatter, configure

TEXT = TextFormatter()


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
            assert line["client"].startswith("127.0.0.1:")
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


@given(st.text(), st.text(), st.text())
def test_a_text_line_is_one_line_whatever_is_logged(message: str, value: str, raised: str) -> None:
    """No new line, nothing that a terminal obeys, and no traceback that looks like a record."""
    try:
        raise ValueError(raised)
    except ValueError:
        record = logging.LogRecord("serving.access", logging.INFO, "", 0, "%s", (message,), sys.exc_info())
    record.path = value
    first, *traceback = TEXT.format(record).split("\n")
    assert first.isprintable()
    assert first.partition(" INFO serving.access: ")[2]
    assert len(traceback) > 2
    for line in traceback:
        assert line.isprintable()
        assert line.startswith("    ")


@given(st.text())
def test_a_value_cannot_pass_for_another(value: str) -> None:
    record = logging.LogRecord("serving", logging.INFO, "", 0, "hello", (), None)
    record.path, record.status = value, 200
    given = TEXT.format(record).partition(" path=")[2]
    path, _, rest = given.rpartition(" status=")
    assert rest == "200"
    assert " " not in path or path[0] == path[-1] == '"'


def test_a_path_or_an_id_cannot_forge_a_line(run_server, tiny_bundle, written) -> None:
    forged = "2026-01-01 00:00:00,000 ERROR serving: forged"
    with run_server(tiny_bundle, access_log=True) as server:
        configure("text", LogFilter())
        path = f"/v1/\n{forged}\x1b[2J\u202e"
        httpx.get(server.url + quote(path), headers={"X-Request-ID": "a\tb"})
        httpx.post(server.url + quote(f"/v2/models/{path}/infer"))
        lines = written()
    assert len(lines) == 2
    for line in lines:
        assert line.isprintable()
        assert rf"/v1/\n{forged}\x1b[2J\u202e" in line
        assert "client=127.0.0.1:" in line


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
