"""Which worker runs where, as users write it: every worker once, whatever the order and the spelling."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensai_serve.errors import InputError
from serving.placement.worker_map import parse_ids, parse_workers, workers_on
from serving.runtime.endpoint import Security


def places(*specs: str, file: Path | None = None, n_workers: int = 10) -> list[str]:
    found = parse_workers(specs, file, Security())
    return [str(found.devices[d]) for d in found.device_of(n_workers)]


def test_servers_devices_and_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "workers"
    file.write_text("# first the cards\n\n4-5=grpcs://[::1]:8001   # one\n9 = grpc://node-2:8001/special\n")
    assert places("0,2=grpc://node-1:8001/", "*=cpu:0", file=file) == [
        *("grpc://node-1:8001", "cpu:0", "grpc://node-1:8001", "cpu:0", "grpcs://[::1]:8001"),
        *("grpcs://[::1]:8001", "cpu:0", "cpu:0", "cpu:0", "grpc://node-2:8001/special"),
    ]


@given(st.lists(st.integers(0, 30), unique=True, min_size=1))
def test_ids_survive_being_written_as_they_are_read(ids: list[int]) -> None:
    assert parse_ids(",".join(map(str, ids))) == tuple(ids)


@given(st.text(max_size=12))
def test_no_text_breaks_the_parser(text: str) -> None:
    try:
        places(text)
    except InputError as error:
        assert "\n" not in str(error).replace(text, "")


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (("0-8=cpu",), "worker 9: listed nowhere, expected each of 0 to 9 once, or '*'"),
        (("0-4=cpu",), "workers 5, 6, 7, 8, 9: listed nowhere"),
        (("0-9=cpu", "3=grpc://a:1"), "worker 3 is listed twice: cpu and grpc://a:1"),
        (("*=cpu", "*=grpc://a:1"), "'*' is listed twice: cpu and grpc://a:1"),
        (("0-10=cpu",), "worker 10 is listed, expected one of 0 to 9"),
        (("grpc://a:1",), "worker is 'grpc://a:1', expected WORKERS=grpc://HOST:PORT or WORKERS=cpu:CORE"),
        (("*=ftp://a:1",), "'ftp://a:1' is no server, expected grpc"),
        (("*=grpc://a",), "'grpc://a' is no server"),
        (("*=grpc://a:70000",), "'grpc://a:70000' is no server"),
        (("*=grpc://user@a:1",), "'grpc://user@a:1' is no server"),
        (("*=gpu",), "device is 'gpu', expected cpu, cpu:CORE or cuda:CARD"),
        (("0-3=grpc://a:1/m",), "grpc://a:1/m is one model, expected one worker for it, not 0-3"),
        (("5-3=cpu",), "expected ascending ranges"),
    ],
)
def test_what_cannot_be_is_one_line(specs: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=r"^.*$") as refused:
        places(*specs)
    assert message in str(refused.value)


def test_a_node_finds_its_own_workers() -> None:
    found = parse_workers(
        ["0,3=grpc://node-0.sensai:1", "7=grpc://node-0.sensai:1", "*=grpc://rest:1"], None, Security()
    )
    assert workers_on(found, "node-0") == workers_on(found, "node-0.sensai") == (0, 3, 7)
    with pytest.raises(InputError, match="no worker is for the host 'node', expected one of the hosts"):
        workers_on(found, "node")
    with pytest.raises(InputError, match=r"'\*' is for grpc://rest:1, expected the workers of a node by their ids"):
        workers_on(found, "rest")


def test_a_line_of_a_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "workers"
    file.write_text("0-4=grpc://a:1\n\n5-9=nowhere\n")
    with pytest.raises(InputError, match=r"workers:3: device is 'nowhere'"):
        places(file=file)
    file.write_text("# nothing\n")
    with pytest.raises(InputError, match="lists no workers, expected lines such as"):
        places(file=file)
    with pytest.raises(InputError, match="nowhere cannot be read: No such file"):
        places(file=tmp_path / "nowhere")
