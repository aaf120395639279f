"""``python -m bench peers``: bypass to the wire beside every peer that can run here, frame size by frame size."""

from dataclasses import replace

from bench.benchmarks import throughput
from bench.method.contenders import TO_WIRE
from bench.method.options import PEERS, Options
from bench.method.progress import Steps
from bench.report.results import BenchmarkResult

TITLE = "Peers"
ABOUT = (
    "Bypass, guest to wire, in the same rounds as other ways to get a frame from one process to another: DPDK's vhost-user pair, "
    "as it comes and at its best, and its memif (which touch headers only, and are held against a bypass stream that does so, too; "
    "memif copies twice), a veth pair, AF_UNIX. Ring depth and pool are the same for all that have them."
)


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """All peers, whatever paths were asked for."""
    ours = replace(options, paths=("bypass",), peers=options.peers or PEERS, cores="all")
    await throughput.measure(result, ours, progress, [TO_WIRE], sweep=False)
