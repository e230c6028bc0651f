"""Selects which blocks and channels of a network stay: profile, rank, and cut to a budget."""
