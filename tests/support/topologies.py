"""Topology files of tests' own: written, read, and what is said of a bad one."""

from pathlib import Path

import pytest

from lab.topology import Topology, TopologyError, load

MIB = 1 << 20

ANNA = '[[guest]]\nname = "anna"\npath = "split"\n'
BERT = '[[guest]]\nname = "bert"\npath = "split"\n'
TAP = '[[guest]]\nname = "tess"\npath = "bypass"\nprogram = "tap"\naddress = "10.0.0.1/24"\n'


def write(folder: Path, text: str, name: str = "lab.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def read(folder: Path, text: str) -> Topology:
    return load(write(folder, text))


def problems(folder: Path, text: str) -> dict[str, str]:
    """Key to reason; and each is in the text that a user sees, under the file's name."""
    path = write(folder, text)
    with pytest.raises(TopologyError) as caught:
        load(path)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{path}: ")
    assert lines[1:] == [f"  {key}: {reason}" if key else f"  {reason}" for key, reason in caught.value.problems]
    found = dict(caught.value.problems)
    assert len(found) == len(caught.value.problems), "a key is refused twice"
    return found
