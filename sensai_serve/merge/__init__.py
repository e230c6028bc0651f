"""Copies to one answer: the vote, when it is decided, and what is waited for.

`MergePlan` is made once per bundle; `MergePlan.collect` starts one request, fed by `Collector.add` and
`Collector.erase` until it says that the answer stands. How copies are counted is a plugin of
`sensai_serve.merge.rules`.
"""

from sensai_serve.merge.answer import Answer
from sensai_serve.merge.collector import WAITS, Collector, MergePlan, Wait, parse_wait

__all__ = ["WAITS", "Answer", "Collector", "MergePlan", "Wait", "parse_wait"]
