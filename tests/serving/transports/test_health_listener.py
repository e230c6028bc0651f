"""The listener for probes: health over HTTP without a certificate or a token, and nothing else."""

from __future__ import annotations

import httpx
import pytest

from serving.settings import Settings

PROBES = ("health=127.0.0.1:0",)


def test_it_answers_health_alone_whatever_other_listeners_ask_for(run_server, tiny_bundle, authority, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("everything-0123456789 predict observe control\n")
    tokens.chmod(0o600)
    tls = {"cert": authority / "node.pem", "key": authority / "node.key", "client_ca": authority / "ca.pem"}
    with run_server(tiny_bundle, tls=tls, clients={"tokens": tokens}, listen=PROBES) as server:
        assert [url.partition("://")[0] for url in server.urls] == ["https", "http"]
        with httpx.Client(base_url=server.urls[1]) as probe:
            for path in ("live", "ready"):
                assert probe.get(f"/v2/health/{path}").status_code == 200
            for method, path in (
                ("GET", "/v2"),
                ("GET", "/metrics"),
                ("GET", "/v1/models"),
                ("GET", "/docs"),
                ("GET", "/"),
                ("GET", "/nothing"),
                ("POST", "/v2/models/tiny/infer"),
                ("POST", "/v1/predict"),
                ("POST", "/v2/logging"),
            ):
                for headers in ({}, {"authorization": "Bearer everything-0123456789"}):
                    refused = probe.request(method, path, headers=headers)
                    assert refused.status_code == 403, path
                    assert "only health is answered here" in refused.json()["error"]


@pytest.mark.parametrize("attribute", ["shares_memory", "controls_models", "console_for"])
def test_what_only_this_machine_may_is_not_lost_by_it(attribute):
    """A probe from elsewhere can do nothing with what is open to this machine."""
    alone = Settings()
    probed = Settings(listen=("health=0.0.0.0:8003",))
    opened = Settings(listen=("grpc=0.0.0.0:8001",))
    assert probed.open_addresses == ()
    assert getattr(probed, attribute) == getattr(alone, attribute) != getattr(opened, attribute)
