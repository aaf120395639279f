"""Counters that guests made up: they balance or do not, and are in nobody else's way."""

import os
import struct
from typing import Any

from hyp.abi.counters import COLUMNS, COUNTERS_BYTES, NAME_BYTES, ROW_BYTES
from lab.command.clients import counters_of, port_of
from lab.counters import CounterReader
from lab.ledger import Snapshot, equations, faults, operations, per_frame, trap_ns, unbalanced


def page_of(rows: dict[bytes, int]) -> int:
    """A counters page as a file, every count of a row the same."""
    page = bytearray(COUNTERS_BYTES)
    for index, (name, count) in enumerate(rows.items()):
        struct.pack_into(f"<{NAME_BYTES}s{COLUMNS}q", page, index * ROW_BYTES, name, *[count] * COLUMNS)
    fd = os.memfd_create("counters")
    assert os.write(fd, page) == COUNTERS_BYTES
    return fd


def read(**pages: dict[bytes, int]) -> Any:
    return CounterReader({process: page_of(rows) for process, rows in pages.items()}).read()


HOSTILE = [
    b"tap", b"x/tap", b"device.", b"device.x", b"/device", b"/", b"enqueue", b"../nic/ctx1:anna", b"ctx1:anna", b"vif1:anna",
    b":anna.vmm",
    b"\x1b[2J[red]", b"a\nb", b"\xff" * 64, b" ", b"uplink", b"hyp/uplink1:anna", b"anna/tap", b"%s{0}",
]  # fmt: skip


def shown(found: Snapshot) -> dict[str, Any]:
    return counters_of("anna", found, "nic/ctx1:anna", is_addressed=False)


def test_what_a_guest_sent_is_what_its_port_counts_unless_its_programs_do() -> None:
    found = read(nic={b"ctx1:anna": 5}, anna={b"tap": 7})
    assert counters_of("anna", found, "nic/ctx1:anna", is_addressed=True)["tx_frames"] == found["anna/tap"]["tx_frames"]
    assert shown(found)["tx_frames"] == found["nic/ctx1:anna"]["tx_frames"] != found["anna/tap"]["tx_frames"]


def test_rows_that_a_guest_made_up_break_no_table() -> None:
    honest = {"nic": {b"ctx1:anna": 5, b"wire0": 5}, "anna": {b"device": 5}}
    known = read(**honest)
    for count in (0, 1, -1, (1 << 63) - 1, -(1 << 63)):
        for names in [[name] for name in HOSTILE] + [HOSTILE]:
            found = read(**honest, mallory=dict.fromkeys(names, count))
            assert {row: counts for row, counts in found.items() if not row.startswith("mallory/")} == known
            assert all(row.isprintable() and row.count("/") == 1 for row in found)
            others = [str(equation) for equation in equations(found) if "mallory" not in str(equation)]
            assert others == [str(equation) for equation in equations(known)], names
            for table in (unbalanced, faults, trap_ns):
                table(found)
            per_frame(found, 7)
            operations(found, 7)
            assert port_of("anna", found) == "nic/ctx1:anna"
            assert shown(found) == shown(known)


def test_a_tap_without_a_device_does_not_balance() -> None:
    assert unbalanced(read(mallory={b"tap": 0})) == []
    found = unbalanced(read(mallory={b"tap": 3}))
    assert {equation.hop for equation in found} == {"mallory/tap to device", "device to mallory/tap"}
