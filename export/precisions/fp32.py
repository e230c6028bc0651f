"""``fp32``: single precision, as torch computes."""

from __future__ import annotations

from export.precisions import Precision, Tolerance

precision = Precision(lambda data, inputs: data, Tolerance(worst=1e-4, mean=1e-4))
