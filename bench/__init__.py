"""Measurement: workloads, the ledger, the demo."""
