"""`sensai bench memory`: subnets that are open in one process share what they can."""

from __future__ import annotations

from benchmarks.suites.memory import OURS, SEPARATE, measure, report
from sensai_serve.bundles import Bundle
from sensai_serve.report import Table


def test_subnets_as_served_take_less_than_separate_sessions() -> None:
    found = measure(Bundle.open("example:cifar10"), counts=(10,))
    assert 0 < found["bytes"][OURS]["10"] < 0.8 * found["bytes"][SEPARATE]["10"]
    (table,) = report(found).parts
    assert isinstance(table, Table)
    assert table.rows[0][0] == "10"
