"""Unmodified programs as a measure: pairs of ends that run them (ends.py), and the programs, each with a figure (suite.py)."""
