"""Measuring tools: clients, load, rounds, statistics, and processes that are started and ended."""
