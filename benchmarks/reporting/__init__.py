"""Writes results: tables, plots, and one HTML page."""
