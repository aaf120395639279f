"""Fuzzing what a guest, or a user, can send: each target is a function of bytes (targets.py).

    make fuzz                                     everything, for as long as it takes: atheris on every target, and floods of
                                                  hostile descriptors on every path beside verified bystanders (flood.py)
    python -m tests.fuzzing guided TARGET [RUNS]  one target, guided by what it covers (atheris)
    python -m tests.fuzzing flood PATH [NUMBER]   so many hostile descriptors on one path

What fails is written to a file; its bytes, in hexadecimal, become a line of cases/TARGET.txt, where those are that cover most, too.
tests/test_fuzzing.py tries each target with these, with inputs of hypothesis', and, shortly, guided.
"""

from pathlib import Path
from typing import Final

NAMES: Final = ("control", "store", "wire", "topology", "arguments")
"""Of the targets, for who must not load them yet."""
CASES: Final = Path(__file__).resolve().parent / "cases"


def cases(name: str) -> list[bytes]:
    """What is kept of a target's inputs."""
    return [bytes.fromhex(line) for line in (CASES / f"{name}.txt").read_text().split()]
