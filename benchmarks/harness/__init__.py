"""Measures: clients, clocks, statistics, and processes that are started and ended."""
