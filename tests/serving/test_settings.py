"""Settings: where they come from, which wins, and what is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from sensai_serve.errors import InputError
from serving.devices import Device
from serving.settings import Address, Settings, load_settings


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


@pytest.mark.parametrize("address", ["8000", "localhost", ":8000", "host:", "host:http", "::1:80", "host:-1", "host:٣"])
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
