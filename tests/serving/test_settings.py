"""Settings: where they come from, which wins, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from sensai_serve.errors import InputError
from serving.address import Address
from serving.runtime.devices import Device
from serving.settings import Settings, describe_settings, load_settings


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SENSAI_HTTP", "SENSAI_LIMITS__BATCH", "SENSAI_INFERENCE__DEVICES", "SENSAI_INFERENCE__FAULTS"):
        monkeypatch.delenv(name, raising=False)


def test_it_listens_on_loopback_unless_told_otherwise() -> None:
    assert load_settings().http == Address(host="127.0.0.1", port=8000)


def test_flags_win_over_the_environment_field_by_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENSAI_HTTP", "[::1]:81")
    monkeypatch.setenv("SENSAI_LIMITS__BATCH", "7")
    monkeypatch.setenv("SENSAI_INFERENCE__DEVICES", "cpu:0 cpu:1")
    monkeypatch.setenv("SENSAI_INFERENCE__FAULTS", "3:delay=50ms,drop=0.1; 0+4:nan")
    settings = load_settings(limits={"in_flight": 3, "body_bytes": None}, inference={"devices": None})
    assert settings.http == Address(host="::1", port=81)
    assert str(settings.http) == "[::1]:81"
    assert (settings.limits.batch, settings.limits.in_flight) == (7, 3)
    options = settings.gateway_options()
    assert options.devices == (Device("cpu", 0), Device("cpu", 1))
    assert (options.max_batch, options.max_in_flight, len(options.faults)) == (7, 3, 2)
    assert load_settings(http="0.0.0.0:82").http == Address(host="0.0.0.0", port=82)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        load_settings().limits.batch = 5  # type: ignore[misc]


def test_every_setting_is_described() -> None:
    groups = [Settings]
    while groups:
        for name, field in groups.pop().model_fields.items():
            assert field.description, name
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                groups.append(field.annotation)


def test_every_setting_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "sensai.toml"
    file.write_text('http = "127.0.0.1:81"\n[limits]\nbatch = 8\nin_flight = 8\nidle_s = 8\n')
    monkeypatch.setenv("SENSAI_LIMITS__IN_FLIGHT", "16")
    monkeypatch.setenv("SENSAI_LIMITS__IDLE_S", "16")
    flags = {"limits": {"idle_s": 32}, "inference": {"devices": ["cpu:0", "cpu:1"], "wait": None}}
    described = {setting.name: (setting.value, setting.origin) for setting in describe_settings(file, **flags)}
    assert described["http"] == ("127.0.0.1:81", "file")
    assert described["limits.batch"] == ("8", "file")
    assert described["limits.in_flight"] == ("16", "environment")
    assert described["limits.idle_s"] == ("32.0", "flag")
    assert described["inference.devices"] == ("cpu:0 cpu:1", "flag")
    assert described["inference.wait"] == ("", "default")
    assert described["grpc"] == ("", "default")
    assert load_settings(file, **flags).limits.in_flight == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch", "no TOML"),
        ("[limits]\nbatch = 'x'\n", "setting limits.batch: Input should be a valid integer"),
        ("limits = 5\n", "setting limits: Input should be"),
        ("[limit]\nbatch = 5\n", "setting limit: Extra inputs are not permitted"),
    ],
)
def test_a_file_that_cannot_be_accepted(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "sensai.toml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        load_settings(file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["8000", "localhost", "unix:", "host:", "host:http", "::1:80", "host:-1", "host:٣"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(InputError, match="expected HOST:PORT"):
        load_settings(http=address)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SENSAI_LIMITS__BATCH", "many", "setting limits.batch: Input should be a valid integer"),
        ("SENSAI_LIMITS__BATCHES", "5", "setting limits.batches: Extra inputs are not permitted"),
        ("SENSAI_DRAIN_S", "inf", "setting drain_s"),
    ],
)
def test_an_environment_that_cannot_be_accepted(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as caught:
        load_settings()
    assert message in str(caught.value)
