"""Capture files in a topology: where they are, and whether they are some (docs/replay.md)."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hyp.capture.format import CaptureError
from hyp.capture.read import CaptureReader
from lab.schema.tables import Wire, Workload
from lab.schema.values import MAC, WIRE
from lab.schema.words import suggest


def with_files(data: dict[str, Any], folder: str) -> dict[str, Any]:
    """The tables of a topology, in which capture files are relative to `folder`."""

    def placed(table: Any) -> Any:
        given = table.get("file") if isinstance(table, dict) else None
        return {**table, "file": os.path.join(folder, given)} if isinstance(given, str) else table

    nic, loads = data.get("nic"), data.get("workload")
    if isinstance(nic, dict) and "wire" in nic:
        data = {**data, "nic": {**nic, "wire": placed(nic["wire"])}}
    return {**data, "workload": [placed(load) for load in loads]} if isinstance(loads, list) else data


def problems(wire: Wire, guests: Sequence[str], loads: Mapping[int, Workload]) -> Iterator[tuple[str, str]]:
    """Key and reason for each file that is to be replayed and can't be read, and for addresses that become nobody's."""
    files = [("nic.wire.file", wire.file)] if wire.mode == "replay" else []
    for key, file in [*files, *((f"workload[{index}].file", load.file) for index, load in loads.items())]:
        try:
            if file is not None:
                CaptureReader(file).close()
        except CaptureError as error:
            yield key, str(error)
    for old, new in wire.rewrite.items():
        if new not in (*guests, WIRE) and not MAC.fullmatch(new.lower()):
            yield "nic.wire.rewrite", f"{old}: {new!r} is neither a guest nor a MAC address{suggest(new, guests)}"
