"""A guest changes its path under load: what is lost, what comes twice, and for how long it sends nothing (docs/faults.md).

``python -m bench moves [--rounds N] [--seed S] [--quick]``: N moves under verified streams, as many under TCP each way.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from bench.chaos.moving import MOVED, ROUND_TRIP, Session, moves_under_streams, moves_under_tcp
from bench.method.claims import Claim
from bench.method.options import Options
from bench.method.progress import Part, Steps
from bench.peers import PeerError
from bench.programs.suite import IperfTcp
from bench.report.results import BenchmarkResult, Row
from domu.netns import can_create
from lab.figures import percentile

MOVES, QUICK_MOVES = 100, 10
PAUSE_MS = 20.0
ENOUGH = 100
"""Moves that make a 99th percentile; of fewer the longest is what is claimed."""

TITLE = "Moves"
ABOUT = (
    "A guest moves from split to bypass and back while it sends and receives as fast as it can: verified streams of 200 B frames "
    "from and to guests that stay, then iperf3's TCP. Pause: how long the guest sent nothing. Sent by split, by bypass: frames "
    "that the guest has sent, as the ledgers of the two paths have them."
)


async def run(result: BenchmarkResult, options: Options, progress: Steps) -> None:
    """Verified streams, then TCP in both directions."""
    moves = options.repeat or (QUICK_MOVES if options.quick else MOVES)
    found = {"verified streams": await moves_under_streams(moves, options.seed, Part(progress, 0.0, 0.6))}
    lacking = can_create() or IperfTcp().missing()
    if lacking is not None:
        result.notes.append(f"TCP is left out: {lacking}")
    for number, reverse in enumerate((False, True) if lacking is None else ()):
        under = f"TCP, the moved guest {'receives' if reverse else 'sends'}"
        part = Part(progress, 0.6 + 0.2 * number, 0.8 + 0.2 * number)
        try:
            found[under] = await moves_under_tcp(moves, options.seed, part, reverse=reverse)
        except PeerError as error:
            result.records.append({"under": under, "errors": [str(error)]})
            result.claims.append(Claim.counted(f"{under}: it goes on", None, "=", 0, str(error)))
    for under, done in found.items():
        result.records += [_record(under, one) for one in done]
        _claim(result, under, done)
    _tabulate(result, found)


def _record(under: str, session: Session) -> Row:
    errors = [f"{under}: {session.lost} frames lost"] if session.lost else []
    moves = [{"path": path, "pause_s": pause_s} for path, pause_s in session.moves]
    counts = {name: count for name, count in asdict(session).items() if name != "moves"}
    return {"victim": MOVED, "action": "move", "under": under, "moves": moves, **counts, "errors": errors}


def _drops(done: Sequence[Session]) -> Counter[str]:
    return sum((Counter(session.drops) for session in done), Counter())


def _claim(result: BenchmarkResult, under: str, done: Sequence[Session]) -> None:
    pauses = sorted(1000 * pause_s for session in done for _, pause_s in session.moves)
    n = f"{under}, {len(pauses)} moves"
    for what, counts in {
        "frames lost": [session.lost for session in done],
        "frames received twice": [session.duplicated for session in done],
        "frames corrupt": [session.corrupt for session in done],
        "frames sent that neither path's ledger has": [abs(session.by_neither) for session in done],
    }.items():
        result.claims.append(Claim.counted(f"{n}: {what}", sum(counts), "=", 0))
    result.claims.append(Claim.counted(f"{n}: frames dropped on any hop", _drops(done).total(), "=", 0))
    which, pause = ("99th percentile", percentile(pauses, 99)) if len(pauses) >= ENOUGH else ("longest", pauses[-1])
    result.claims.append(Claim.counted(f"{n}: pause, {which}, ms", pause, "≤", PAUSE_MS))


def _tabulate(result: BenchmarkResult, found: dict[str, list[Session]]) -> None:
    head = ["under", "moves", "lost", "twice", "dropped", "to bypass, ms", "to split, ms", "sent by split", "by bypass"]
    lines = []
    for under, done in found.items():
        moves = [move for session in done for move in session.moves]
        sums = [str(sum(getattr(session, name) for session in done)) for name in ("lost", "duplicated")]
        sums.append(", ".join(f"{count} {name}" for name, count in _drops(done).items()) or "0")
        shares = [f"{sum(getattr(session, name) for session in done):,}" for name in ("by_split", "by_bypass")]
        lines.append([under, str(len(moves)), *sums, *(_pauses(moves, path) for path in ROUND_TRIP), *shares])
    result.table("Moves; pauses: median, p99, most", head, lines)


def _pauses(moves: Sequence[tuple[str, float]], to: str) -> str:
    pauses = sorted(1000 * pause_s for path, pause_s in moves if path == to)
    return ", ".join(f"{value:.1f}" for value in (percentile(pauses, 50), percentile(pauses, 99), pauses[-1])) if pauses else "–"
