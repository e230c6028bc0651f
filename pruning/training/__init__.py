"""Trains networks: the loop, augmentation, snapshots, calibration."""
