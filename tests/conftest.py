"""Fixtures for all tests, by what they make: bundles, trained runs, running servers."""

from __future__ import annotations

pytest_plugins = ("bundle_fixtures", "run_fixtures", "server_fixtures")
