"""``sensai check`` and ``sensai serve`` with workers on other servers: what they say before anything is served."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sensai_serve.cli.main import main


def test_check_says_that_all_is_well_or_what_is_not(node_process: Any, tiny_bundle: Path, make_bundle, capsys) -> None:
    with node_process(tiny_bundle, "--grpc", "127.0.0.1:0") as (_, url):

        def check(bundle: Path, *args: str) -> tuple[object, str, str]:
            with pytest.raises(SystemExit) as ended:
                main(["check", str(bundle), *args])
            return ended.value.code, *capsys.readouterr()

        code, out, _ = check(tiny_bundle, "--worker", f"0-8={url}", "--worker", "9=cpu")
        assert code == 0
        assert out.endswith("tiny: 9 of 10 workers on 1 other host, and all answer the 8 golden samples\n")
        for bundle, args, message in (
            (make_bundle(seed=3), ("--worker", f"*={url}"), "runs another subnet"),
            (tiny_bundle, (), "nothing to check, expected --worker"),
        ):
            code, out, err = check(bundle, *args)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert message in err


def test_serve_says_which_hosts_may_be_lost_and_answers(node_process: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    with node_process(tiny_bundle, "--grpc", "127.0.0.1:0") as (_, url):
        (tmp_path / "workers").write_text(f"0-6={url}\n7={url}/tiny-07\n*=cpu\n")
        command = [sys.executable, "-m", "sensai_serve", "serve", str(tiny_bundle), "--http", "127.0.0.1:0"]
        with subprocess.Popen(
            [*command, "--workers", str(tmp_path / "workers"), "--worker-token-file", os.devnull],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as refused:  # fmt: skip
            assert refused.wait(60) == 2
            assert refused.stderr is not None
            assert (
                refused.stderr.read()
                == "sensai: error: /dev/null holds no token, expected one word of printable ASCII\n"
            )
        with subprocess.Popen(
            [*command, "--workers", str(tmp_path / "workers")], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            try:
                said = [process.stdout.readline() for _ in range(3)]
                assert said[0] == "tiny: tolerates no lost other host\n"
                assert "losing 127.0.0.1 leaves class-3, class-4, class-5" in said[1]
                assert said[2].startswith("ready: http://127.0.0.1:")
            finally:
                process.send_signal(signal.SIGTERM)
                assert process.wait(30) == 0
