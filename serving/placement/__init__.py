"""Decides which worker runs where, and which losses of devices and hosts that survives."""
