"""HEAD wherever GET is, and OPTIONS everywhere."""

from __future__ import annotations

import asyncio
import socket

import httpx
import pytest

from serving.engine.repository import Repository

NO_SUCH_PATH = "no such path, expected one of those that GET /docs lists"

PATHS = ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/tiny", "/v2/models/tiny/ready", "/v2/models/stats",
         "/v1/models", "/metrics", "/docs", "/openapi.json", "/docs/swagger-ui.css"]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_head_is_get_without_its_body(server, path: str) -> None:
    get, head = httpx.get(server.url + path), httpx.head(server.url + path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers.get("content-type") == get.headers.get("content-type")
    assert "content-length" in head.headers


@pytest.mark.parametrize(("path", "status"), [("/v3", 404), ("/v2/models/none", 404), ("/v1/predict", 405)])
def test_head_of_an_error_has_its_status(server, path: str, status: int) -> None:
    head = httpx.head(server.url + path)
    assert (head.status_code, head.content) == (status, b"")


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/v2/health/ready", "GET, HEAD, OPTIONS"),
        ("/v2/models/tiny/infer", "OPTIONS, POST"),
        ("/v2/models/tiny/versions/1/infer", "OPTIONS, POST"),
        ("/v1/predict", "OPTIONS, POST"),
        ("/v2/logging", "GET, HEAD, OPTIONS, POST"),
    ],
)
def test_options_and_errors_say_what_a_path_can(server, path: str, allow: str) -> None:
    options = httpx.options(server.url + path)
    assert (options.status_code, options.headers["allow"], options.content) == (204, allow, b"")
    wrong = httpx.request("DELETE", server.url + path)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, allow)
    assert wrong.json() == {"error": f"DELETE is not allowed for this path, expected {allow}"}


def test_models_are_looked_at_on_the_event_loop_alone_where_they_come_and_go(server, monkeypatch) -> None:
    names = Repository.names

    def looked_at(repository: Repository) -> list[str]:
        asyncio.get_running_loop()  # which a thread beside it has not
        return names(repository)

    monkeypatch.setattr(Repository, "names", looked_at)
    monkeypatch.setattr(Repository, "ready", property(lambda repository: bool(repository.names())))
    for path in ("/v1/models", "/v1/workers", "/v2/health/ready", "/metrics"):
        assert httpx.get(server.url + path).status_code == 200


def test_options_of_no_path(server) -> None:
    response = httpx.options(f"{server.url}/v3")
    assert (response.status_code, response.json()) == (404, {"error": NO_SUCH_PATH})
    assert httpx.get(f"{server.url}/v3").json() == {"error": NO_SUCH_PATH}


def test_options_of_the_server(server) -> None:
    with socket.create_connection((server.host, server.port), timeout=10) as client:
        client.sendall(b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        reply = client.makefile("rb").read()
    assert reply.startswith(b"HTTP/1.1 204 ")
    assert b"allow: GET, HEAD, OPTIONS, POST" in reply
