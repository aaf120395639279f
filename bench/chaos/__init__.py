"""Faults under load: processes are killed or stopped while verified streams run on every path (docs/faults.md).

`world`: the topology, its streams, and what became of them · `faults`: what can be done to whom · `ends`: what ends with its owner.
The benchmark is bench/benchmarks/chaos.py.
"""
