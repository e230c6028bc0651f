"""Predicts what a bundle would do on many hosts: simulates the fan-out of each request, with the server's own merge.

Latencies are drawn for each worker and request from a log-normal distribution through two given percentiles, some of
them stretched (stragglers). Hosts are down at random. Scores are those of the bundle's own subnets on its golden
samples, so that a request is decided, or sure, when a real one would be. For another redundancy than the bundle's, the
copies of a class are drawn among those that the bundle has of it for the same input. A subnet is then assumed to take
the given latency and to cost in proportion to the classes that it covers; only subnets of that size could show more.
"""

from serving.planning.latency import Latency, parse_latency
from serving.planning.simulation import Expected, Simulation, shares_of_time, simulate, uncovered_probability

__all__ = [
    "Expected",
    "Latency",
    "Simulation",
    "parse_latency",
    "shares_of_time",
    "simulate",
    "uncovered_probability",
]
