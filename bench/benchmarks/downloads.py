"""A download between two guests while Dom0, the NIC and xenstored are killed: does it end, and is it whole (docs/faults.md)?

``python -m bench downloads [--paths …] [--rounds KILLS] [--quick]``
"""

import shutil

from bench.chaos.downloading import Download, download
from bench.method.claims import Claim
from bench.method.options import Options
from bench.method.progress import Part, Steps
from bench.peers import PeerError
from bench.report.results import BenchmarkResult
from domu.netns import can_create
from hyp.control import ControlError
from lab.errors import LabError

MIB, QUICK_MIB = 1024, 64
KILLS, QUICK_KILLS = 10, 3
VICTIMS = ("dom0", "nic", "xenstored")

TITLE = "Downloads over deaths"
ABOUT = (
    "curl in one guest downloads a file from http.server in another one, on each path, while Dom0, the NIC and xenstored are "
    "killed in turns, so many times in all. Whole: the SHA-256 of what arrived is that of what was sent."
)


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """One path after the other."""
    if (reason := can_create()) is not None or shutil.which("curl") is None:
        result.notes.append(f"left out: {reason or 'the command curl is not here: apt install curl'}")
        return
    octets = (QUICK_MIB if options.quick else MIB) << 20
    kills = options.repeat or (QUICK_KILLS if options.quick else KILLS)
    lines = []
    for number, path in enumerate(options.paths):
        part = Part(progress, number / len(options.paths), (number + 1) / len(options.paths))
        text = f"{path}: a download of {octets >> 20} MiB over {kills} deaths arrives whole"
        try:
            found = await download(path, octets, VICTIMS, kills, part)
        except (PeerError, LabError, ControlError, TimeoutError) as error:
            why = f"{path}: {str(error) or 'nothing has come for too long'}"
            result.records.append({"path": path, "action": "download", "errors": [why]})
            result.claims.append(Claim.counted(text, 0, "=", 1))
            continue
        whole = found.received == found.expected and len(found.killed) == kills
        errors = [] if whole else [f"{path}: {found.arrived} bytes arrived, SHA-256 {found.received}, {len(found.killed)} deaths"]
        result.records.append({
            "path": path, "action": "download", "bytes": found.arrived, "sha256": found.received, "sent_sha256": found.expected,
            "killed": found.killed, "seconds": found.seconds, "stall_s": found.stall_s, "errors": errors,
        })  # fmt: skip
        result.claims.append(Claim.counted(text, int(whole), "=", 1))
        lines.append(_line(found, whole=whole))
    result.table("Downloads", ["path", "MiB", "killed", "whole", "took", "longest without a byte"], lines)


def _line(found: Download, *, whole: bool) -> list[str]:
    deaths = ", ".join(f"{victim} {found.killed.count(victim)}×" for victim in VICTIMS)
    took, stall = f"{found.seconds:.1f} s", f"{found.stall_s:.2f} s"
    return [found.path, str(found.arrived >> 20), deaths, "yes" if whole else "no", took, stall]
