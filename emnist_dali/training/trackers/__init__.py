"""Experiment trackers, one a file; `training/tracking.py` starts those that a config names."""
