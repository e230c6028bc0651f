"""Measures latency: against the reference network, other servers, faults and size. Run by ``sensai bench``."""
