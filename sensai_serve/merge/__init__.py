"""The merge: copies become one answer, as soon as it is decided.

`MergePlan` is made once per bundle; a `Collector` is one request, fed by `Collector.add` and `Collector.erase` until it
says that the answer stands. How copies are counted is a plugin of `sensai_serve.merge.rules`. Offline, thresholds are
fitted on scored inputs (`fit_confidence`, `fit_thresholds`), and accuracy with lost workers is counted
(`lost_workers`).
"""

from sensai_serve.merge.answer import Answer
from sensai_serve.merge.collector import Collector, merge, runs_in_turn
from sensai_serve.merge.plan import WAITS, MergePlan, Wait, parse_wait

__all__ = ["WAITS", "Answer", "Collector", "MergePlan", "Wait", "merge", "parse_wait", "runs_in_turn"]
