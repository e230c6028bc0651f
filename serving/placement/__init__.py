"""Decides which worker runs where, and computes which losses of devices and hosts are survived."""
