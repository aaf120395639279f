"""Models of the protocols between threads, in Promela, and what checks them with spin: docs/models.md.

A ``.pml`` file is a protocol; `tso.h` is memory with store buffers, for those that are about memory. `manifest` says what is
checked, which code each barrier or look stands for, and which bugs are seeded; `check` runs spin; ``python -m tests.models``
(`make model`) runs everything and prints a table.
"""
