"""deploy/prometheus and deploy/grafana: rules that Prometheus' own tools test, and queries that a real one answers."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from sensai_serve.bundles import Bundle

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
DEPLOY = Path(__file__).parents[1] / "deploy"
CONFIG, RULES, RULES_TEST = (DEPLOY / "prometheus" / f"{name}.yaml" for name in ("prometheus", "rules", "rules_test"))
ALERTS = {rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
DASHBOARD = json.loads((DEPLOY / "grafana/sensai-serve.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = {f"{panel['title']} {t['refId']}": t["expr"] for panel in PANELS for t in panel["targets"]}
METRICS = re.compile(r"\bsensai_\w+")
TOKEN = "observer-0123456789"
WITHIN_S = 60


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("no promtool")
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)


def test_prometheus_takes_the_configuration_and_its_rules() -> None:
    done = promtool("check", "config", "--lint=all", "--lint-fatal", CONFIG)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


def test_every_alert_is_raised_by_what_it_is_for(tmp_path: Path) -> None:
    done = promtool("test", "rules", RULES_TEST)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = [case for test in yaml.safe_load(RULES_TEST.read_text())["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == ALERTS
    shutil.copy(RULES_TEST, tmp_path)
    (tmp_path / RULES.name).write_text(RULES.read_text().replace("sensai_model_ready == 0", "sensai_model_ready == 2"))
    assert promtool("test", "rules", tmp_path / RULES_TEST.name).returncode != 0  # it would find a mistake


def test_the_dashboard_is_well_formed() -> None:
    every = DASHBOARD["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    cells = [
        (panel["gridPos"]["x"] + dx, panel["gridPos"]["y"] + dy)
        for panel in every
        for dx in range(panel["gridPos"]["w"])
        for dy in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)  # no two lie on each other
    assert all(0 <= x < 24 for x, _ in cells)
    assert all(panel["description"].endswith(".") and panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS)
    known = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) <= known | {"__all"}


def test_everything_that_is_watched_is_on_the_metrics_page(server) -> None:
    page = httpx.get(f"{server.url}/metrics").text
    there = set(re.findall(r"^# TYPE (\w+) (?:gauge|counter)$", page, re.MULTILINE))
    there |= {f"{name}_bucket" for name in re.findall(r"^# TYPE (\w+) histogram$", page, re.MULTILINE)}
    used = set(METRICS.findall(" ".join(QUERIES.values()))) | set(METRICS.findall(RULES.read_text()))
    assert used <= there | {"sensai_request_seconds_bucket"}, used - there


@contextmanager
def prometheus(target: str, authority: Path, folder: Path) -> Iterator[httpx.Client]:
    """A real Prometheus that watches one server, with our configuration but for its times and the address."""
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus")
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    config["global"] = dict.fromkeys(config["global"], "200ms")
    config["rule_files"] = [str(CONFIG.parent / name) for name in config["rule_files"]]
    (job,) = config["scrape_configs"]
    job["static_configs"][0]["targets"] = [target]
    job |= {"scheme": "https", "tls_config": {"ca_file": str(authority / "ca.pem")}, "scrape_timeout": "200ms",
            "authorization": {"credentials": TOKEN}}  # fmt: skip
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["prometheus", f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}",
               f"--web.listen-address={address}"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            log = list(itertools.takewhile(lambda line: "ready to receive web requests" not in line, process.stderr))
            assert process.poll() is None, log
            with httpx.Client(base_url=f"http://{address}/api/v1", timeout=WITHIN_S) as client:
                yield client
        finally:
            process.kill()


def answered(client: httpx.Client, query: str) -> bool:
    """Whether Prometheus has numbers for a query of the dashboard, with all jobs, servers and models chosen."""
    query = re.sub(r"\$(job|instance|model)", ".*", query).replace("$__rate_interval", "10s")
    reply = client.get("/query", params={"query": query}).json()
    assert reply["status"] == "success", reply
    return any(math.isfinite(float(each["value"][1])) for each in reply["data"]["result"])


def test_a_real_prometheus_answers_every_query(run_server, tiny_bundle: Path, authority: Path, tmp_path: Path) -> None:
    (tokens := tmp_path / "tokens").write_text(f"{TOKEN} observe\nclient-0123456789abc predict\n")
    tokens.chmod(0o600)
    settings = {"tls": {"cert": authority / "node.pem", "key": authority / "node.key"}, "clients": {"tokens": tokens},
                "inference": {"faults": "3:delay=100ms"}}  # fmt: skip
    samples = itertools.cycle(Bundle.open(tiny_bundle).golden().inputs)
    trust = ssl.create_default_context(cafile=authority / "ca.pem")
    with (
        run_server(tiny_bundle, **settings) as server,
        prometheus(server.address, authority, tmp_path) as client,
        httpx.Client(verify=trust, headers={"authorization": "Bearer client-0123456789abc"}) as asks,
    ):
        left, ends = set(QUERIES), time.monotonic() + WITHIN_S
        while left and time.monotonic() < ends:
            tensor = {"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": next(samples).tolist()}
            assert asks.post(f"{server.url}/v2/models/tiny/infer", json={"inputs": [tensor]}).status_code == 200
            left = {name for name in left if not answered(client, QUERIES[name])}
        assert not left
        for variable in DASHBOARD["templating"]["list"][1:]:
            pattern = r"label_values\((.*), (\w+)\)"
            (metric, label) = re.fullmatch(pattern, re.sub(r"\$\w+", ".*", variable["definition"])).groups()
            assert all(each.get(label) for each in client.get("/series", params={"match[]": metric}).json()["data"])
        found: dict[str, Any] = {}
        while set(found) != ALERTS or any(rule["health"] != "ok" for rule in found.values()):
            groups = client.get("/rules").json()["data"]["groups"]
            found = {rule["name"]: rule for group in groups for rule in group["rules"]}
            assert time.monotonic() < ends, found
        raised = {name for name, rule in found.items() if rule["state"] == "firing"}
        assert raised == {"SensaiCertificateExpiresSoon", "SensaiCertificateExpires"}  # it was made for two days
