"""Reads HTTP requests and writes replies and errors, for every route."""
