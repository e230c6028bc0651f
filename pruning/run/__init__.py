"""The run directory: everything that pruning writes, as data only; export reads it."""

from pruning.run.network import Network, finished
from pruning.run.reached import Reached, reached, warning
from pruning.run.run import RECOVERED, REFERENCE, Run

__all__ = ["RECOVERED", "REFERENCE", "Network", "Reached", "Run", "finished", "reached", "warning"]
