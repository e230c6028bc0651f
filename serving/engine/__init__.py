"""Answers requests: admission, fan-out, merging, and the health of workers."""
