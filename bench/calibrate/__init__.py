"""Calibration: which published ratios come out of the lab, at published costs of operations."""
