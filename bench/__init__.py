"""Measurement: benchmarks, their method, their report, and the floor and peers that stand beside the lab's paths."""
