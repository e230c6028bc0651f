"""Runs the cases."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import machine
from benchmarks.harness.venvs import Install, environment
from benchmarks.suites.existing import members, replicas, table
from benchmarks.suites.existing.members import MembersResult
from benchmarks.suites.existing.replicas import ReplicasResult
from benchmarks.suites.existing.workshop import ExistingOptions
from sensai_serve.errors import InputError
from sensai_serve.progress import OnProgress

__all__ = ["CASES", "ExistingOptions", "ExistingResult", "measure"]

CASES = ("replicas", "ensemble", "cascade", "table", "first-answer")


@dataclass
class ExistingResult:
    """The figures of the cases that were run."""

    options: ExistingOptions
    machine: dict[str, Any]
    replicas: ReplicasResult | None = None
    members: dict[str, MembersResult] = field(default_factory=dict)
    """Of the ensemble and of the cascade."""
    table: dict[str, Any] | None = None
    first_answer: dict[str, float] | None = None


def measure(
    options: ExistingOptions, cases: Sequence[str], on_step: OnProgress, install: Install = environment
) -> ExistingResult:
    """Run cases.

    Args:
        options: what is measured.
        cases: some of `CASES`; all where empty.
        on_step: hears of progress.
        install: gives the Python of an environment with some packages.

    Raises:
        InputError: there is no such case, or the models or the data that it needs are not given.
        ServingError: a bundle cannot be made or served.
    """
    cases = cases or CASES
    if unknown := [case for case in cases if case not in CASES]:
        raise InputError(f"--case is {unknown[0]!r}, expected one of {', '.join(CASES)}")
    if missing := [str(model) for model in options.models if not model.is_file()]:
        raise InputError(f"{missing[0]} is not there, expected an ONNX file")
    for case in cases:
        least = {"table": 0, "ensemble": 2, "cascade": 2}.get(case, 1)
        if len(options.models) < least:
            raise InputError(f"{case} has {len(options.models)} models, expected {least} ONNX files or more")
        if least and options.data is None:
            raise InputError(f"{case} has no labelled data, expected --data SOURCE that fits the models")
    found = ExistingResult(options, machine.describe())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "replicas" in cases:
            found.replicas = replicas.measure(options, folder, on_step, install)
        if "ensemble" in cases:
            found.members["ensemble"] = members.ensemble(options, folder, on_step)
        if "cascade" in cases:
            found.members["cascade"] = members.cascade(options, folder, on_step)
        if "table" in cases:
            found.table = table.measure(options, folder, on_step, install)
        if "first-answer" in cases:
            found.first_answer = members.first_answer(options, folder, on_step)
    return found
