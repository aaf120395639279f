"""How everything here is measured: short slices that take turns in one live topology, so that what the machine does hits all alike.

A small virtual machine changes under a measurement: its host lays two virtual cores on one physical core, or takes them away,
and the same program differs by a factor from one second to the next. So slices of at most half a second take turns: A B C, then C B
A, then A B C … A drift that is linear over two rounds moves A÷B up in one round and down in the next, so that it cancels in the
median of an even number of rounds. A *probe* is read between slices (probe.py). What comes of it all: samples.py.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from bench.method.progress import Steps
from bench.method.samples import Samples, Slice, Taken, again_name

LONGEST_SLICE_S = 0.5

Kind = Literal["path", "peer", "floor"]


class Probe(Protocol):
    """Looks at the machine between two slices; a reading costs a few milliseconds."""

    def read(self) -> Any:
        """What the machine is like now."""

    def regime(self, before: Any, after: Any) -> str:
        """The label of a slice between two readings: "apart", "together", "mixed", … (probe.py)."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that can be measured: `run(seconds)` is one slice of it. `prepare`, if there is, comes before the first one."""

    name: str
    run: Callable[[float], Awaitable[Slice]]
    kind: Kind = "path"
    prepare: Callable[[], Awaitable[None]] | None = None


async def interleave(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    seconds: float,
    probe: Probe,
    again: str | None = None,
    progress: Steps | None = None,
    samples: Samples | None = None,
) -> Samples:
    """Run `rounds` rounds of one slice of `seconds` each per contender, every other round backwards.

    `again` names the contender that runs at both ends of a round, for the A/A interval; without it nothing can be decided. More
    rounds of what `samples` has are added to it. ValueError for slices longer than 0.5 s, names that occur twice, or an unknown
    `again`.
    """
    if not 0 < seconds <= LONGEST_SLICE_S:
        raise ValueError(f"a slice of {seconds:g} s: more than 0 and at most {LONGEST_SLICE_S} s keep the machine the same in it")
    if rounds < 1:
        raise ValueError(f"{rounds} rounds")
    order = _order(contenders, again)
    if samples is None:
        samples = Samples(again=again, seconds=seconds)
    if not samples.taken:
        for contender in contenders:
            if contender.prepare is not None:
                await contender.prepare()
    first, done = samples.rounds, 0
    before = probe.read()
    for number in range(first, first + rounds):
        for contender in order if number % 2 == 0 else order[::-1]:
            if progress is not None:
                progress.step(f"{contender.name}, round {number + 1} of {first + rounds}", done / (rounds * len(order)))
            result = await contender.run(seconds)
            after = probe.read()
            samples.add(Taken(number, contender.name, probe.regime(before, after), result))
            before, done = after, done + 1
    return samples


def _order(contenders: Sequence[Contender], again: str | None) -> list[Contender]:
    """The contender that runs twice is first and last; names are unique."""
    by_name = {contender.name: contender for contender in contenders}
    if len(by_name) < len(contenders) or not contenders:
        raise ValueError(f"contenders need names of their own: {[contender.name for contender in contenders]}")
    if again is None:
        return list(contenders)
    if again not in by_name or again_name(again) in by_name:
        raise ValueError(f"cannot run {again!r} again among {list(by_name)}")
    one = by_name.pop(again)
    return [one, *by_name.values(), Contender(again_name(again), one.run, one.kind)]
