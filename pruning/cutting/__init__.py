"""Cuts channels and blocks out of a network: profile, dependency graph, pruning ratios, reconstruction."""
