"""Both ends of each hop, read at the same moment: what one has handed over and the other has taken.

A counters page is 80 KiB: between reading one and the next a stream moves more frames than a ring holds. So what is to be
subtracted is read by itself, eight bytes at a time: what was taken, what was handed over, and what was taken once more; the
truth about the moment in the middle lies between the first and the last.
"""

from collections.abc import Iterable

from lab.counters import CounterReader, Follower
from lab.ledger import Snapshot
from lab.view.picture import Feed, Picture, rows_of
from lab.view.samples import Pairs


class Ends:
    """Finds the places in the pages once, and again when there are other pages, rows or hops."""

    def __init__(self) -> None:
        self._of: tuple[object, object, frozenset[str]] | None = None
        self._hops: dict[str, tuple[list[Follower], list[Follower]]] = {}

    def read(self, reader: CounterReader, picture: Picture, counts: Snapshot) -> Pairs:
        """Of every hop whose two ends count. `counts`: what `reader` has read, for the names of the rows."""
        of = (reader, picture, frozenset(counts))
        if self._of != of:
            self._of, self._hops = of, _found(reader, picture, counts)
        return {hop: _pair(*ends) for hop, ends in self._hops.items()}


def _found(reader: CounterReader, picture: Picture, counts: Snapshot) -> dict[str, tuple[list[Follower], list[Follower]]]:
    hops = {}
    for hop in picture["hops"]:
        handed, taken = (_followers(reader, hop["feeds"].get(end), counts) for end in ("handed", "taken"))
        if handed and taken:
            hops[hop["id"]] = handed, taken
    return hops


def _followers(reader: CounterReader, feed: Feed | None, counts: Snapshot) -> list[Follower]:
    if feed is None:
        return []
    found = []
    for row in rows_of(feed, counts):
        process, _, name = row.partition("/")
        try:
            found += [reader.follow(process, name, column) for column in feed["columns"]]
        except LookupError:  # a guest has renamed it meanwhile
            continue
    return found


def _pair(handed: Iterable[Follower], taken: Iterable[Follower]) -> tuple[int, int]:
    before = sum(one() for one in taken)
    given = sum(one() for one in handed)
    return given, (before + sum(one() for one in taken)) // 2
