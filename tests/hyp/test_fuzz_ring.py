"""Both ends of a ring against a slow model, while hypothesis drives them and lies now and then in the words that they share.

The model keeps indices modulo 2^32 as the ring does, and decides by enumeration instead of subtraction: a peer's index is good if
it is one of those that the protocol allows, each listed; an event is due if the event index is one of those just passed.
"""

from collections import Counter
from typing import Any, Final

from hypothesis import strategies as st

from hyp.abi.ring import REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD
from hyp.ring import PROTOCOL_FAULT
from tests.support.fuzz import TIERS, fuzz
from tests.support.rings import (
    ARM_REQ,
    ARM_RSP,
    FREE,
    HAVE_REQ,
    HAVE_RSP,
    NEXT_REQ,
    NEXT_REQ_SLOT,
    NEXT_RSP,
    NEXT_RSP_SLOT,
    PUSH_REQ,
    PUSH_RSP,
    WRAP,
    Pair,
)

INPUTS: Final = 100
WORDS: Final = {"req_prod": REQ_PROD, "req_event": REQ_EVENT, "rsp_prod": RSP_PROD, "rsp_event": RSP_EVENT}


def following(index: int, count: int) -> list[int]:
    """The `count` indices from `index` on."""
    return [(index + k) % WRAP for k in range(count)]


class Side:
    """What one end has done: `written` and `published` of what it produces, `seen` and `consumed` of what the other does."""

    def __init__(self, start: int) -> None:
        self.written = self.published = self.seen = self.consumed = start


class Model:
    """Both ends, and the four shared words, whoever wrote them."""

    def __init__(self, entries: int, start: int) -> None:
        self.entries = entries
        self.front, self.back = Side(start), Side(start)
        after = (start + 1) % WRAP
        self.words = {"req_prod": start, "req_event": after, "rsp_prod": start, "rsp_event": after}

    def under_way(self) -> int:
        """Slots that the front end has written requests into and not yet read the responses of."""
        return following(self.front.consumed, self.entries + 1).index(self.front.written)

    def good(self, side: Side) -> list[int]:
        """What the other end's index may be, from nothing new to all that this end lets it have."""
        if side is self.front:  # as many responses as requests were published
            most = following(side.consumed, self.entries + 1).index(side.published)
        else:  # the slots of what was not answered yet are taken
            most = self.entries - following(side.published, self.entries + 1).index(side.consumed)
        return following(side.consumed, most + 1)

    def ready(self, side: Side) -> int:
        """What an end may take, or PROTOCOL_FAULT. It looks at the shared index once what it saw of it is used up."""
        if side.seen == side.consumed:
            claimed = self.words["rsp_prod" if side is self.front else "req_prod"]
            if claimed not in self.good(side):
                return PROTOCOL_FAULT
            side.seen = claimed
        return following(side.consumed, self.entries + 1).index(side.seen)

    def publish(self, side: Side) -> bool:
        """Publish what was written; whether the other end asked to be told of any of it."""
        passed = following(side.published, self.entries + 1)
        passed = passed[1 : passed.index(side.written) + 1]
        if passed:
            self.words["req_prod" if side is self.front else "rsp_prod"] = side.written
            side.published = side.written
        return self.words["req_event" if side is self.front else "rsp_event"] in passed

    def arm(self, side: Side) -> bool:
        """Ask to be told of what comes next; whether there is something already."""
        if side.seen != side.consumed:
            return True
        prefix = "rsp" if side is self.front else "req"
        self.words[f"{prefix}_event"] = (side.consumed + 1) % WRAP
        return self.words[f"{prefix}_prod"] != side.consumed


def fault(claimed: int, side: Side, model: Model) -> str:
    """What kind of lie made an end refuse."""
    who = "front" if side is model.front else "back"
    return f"{who} end: {'went back' if claimed in following(side.consumed - 64, 64) else 'ran ahead'}"


class Run:
    """The ring and its model, side by side."""

    def __init__(self, entries: int, start: int, seen: Counter[str]) -> None:
        self.pair, self.model, self.seen = Pair(entries, start), Model(entries, start), seen

    def produce(self, many: int) -> None:
        """The front end writes requests."""
        room = self.model.entries - self.model.under_way()
        assert self.pair(FREE) == room
        for index in following(self.model.front.written, min(many, room)):
            assert self.pair.slot(self.pair(NEXT_REQ)) == index % self.model.entries
            self.model.front.written = (index + 1) % WRAP

    def take(self, side: Side, have: int, next_slot: int, answer: int | None, many: int) -> None:
        """An end takes what the other has published, and the back end answers it."""
        claimed = self.model.words["rsp_prod" if side is self.model.front else "req_prod"]
        ready = self.model.ready(side)
        assert self.pair(have) == ready
        if ready == PROTOCOL_FAULT:
            self.seen[fault(claimed, side, self.model)] += 1
        for index in following(side.consumed, min(many, max(ready, 0))):
            assert self.pair.slot(self.pair(next_slot)) == index % self.model.entries
            side.consumed = (index + 1) % WRAP
            if answer is not None:
                assert self.pair.slot(self.pair(answer)) == side.written % self.model.entries
                side.written = (side.written + 1) % WRAP

    def step(self, act: str, many: int) -> None:
        """One operation, whose results have to be the model's."""
        front, back = self.model.front, self.model.back
        if act == "request":
            self.produce(many)
        elif act == "read":
            self.take(front, HAVE_RSP, NEXT_RSP, None, many)
        elif act == "respond":
            self.take(back, HAVE_REQ, NEXT_REQ_SLOT, NEXT_RSP_SLOT, many)
        elif act in ("push requests", "push responses"):
            op, side = (PUSH_REQ, front) if act == "push requests" else (PUSH_RSP, back)
            due = self.model.publish(side)
            assert self.pair(op) == due
            self.seen["event" if due else "no event"] += 1
        elif act in ("arm front", "arm back"):
            op, side = (ARM_RSP, front) if act == "arm front" else (ARM_REQ, back)
            assert self.pair(op) == self.model.arm(side)
        elif act == "truth":
            self.tell_the_truth()
        else:
            raise ValueError(act)

    def lie(self, word: str, offset: int) -> None:
        """Somebody writes into a word of the page that is not his to write, or what is not so."""
        value = (self.model.words[word] + offset) % WRAP
        self.model.words[word] = self.pair[WORDS[word]] = value
        self.seen["lie"] += 1

    def tell_the_truth(self) -> None:
        """Take back what was a lie about an index."""
        for word, side in (("req_prod", self.model.front), ("rsp_prod", self.model.back)):
            self.model.words[word] = self.pair[WORDS[word]] = side.published

    def check(self) -> None:
        """The page's words are the model's."""
        assert {word: self.pair[offset] for word, offset in WORDS.items()} == self.model.words


ACTS: Final = ["request", "push requests", "respond", "push responses", "read", "arm front", "arm back", "truth"]
NUMBERS: Final = st.one_of(
    st.integers(-8, -1),
    st.integers(-40, 40),
    st.sampled_from([1 << 31, (1 << 31) - 1, -(1 << 31), 1 << 16]),
    st.integers(0, WRAP - 1),
)
"""How much a word is off by, or how many of something an operation is about."""
STEPS: Final = st.lists(st.tuples(st.sampled_from([*ACTS, *ACTS, *WORDS]), NUMBERS), min_size=20, max_size=120)
CASES: Final = st.tuples(st.sampled_from([1, 2, 8, 32]), st.sampled_from([0, WRAP - 5, WRAP - 16, 1 << 31]), STEPS)
FAULTS: Final = {f"{who} end: {how}" for who in ("front", "back") for how in ("ran ahead", "went back")}


@TIERS
def test_both_ends_do_what_the_model_does_whatever_the_page_says(examples: int) -> None:
    seen: Counter[str] = Counter()

    def body(case: Any) -> None:
        entries, start, steps = case
        run = Run(entries, start, seen)
        for what, number in steps:
            run.lie(what, number) if what in WORDS else run.step(what, 1 + number % 33)
            run.check()

    fuzz(body, CASES, INPUTS * examples)
    print(dict(seen))
    assert seen.keys() == FAULTS | {"event", "no event", "lie"}


def test_a_lie_that_is_taken_back_is_forgiven() -> None:
    """An end that refused an index has not moved: it goes on with the right one."""
    run = Run(8, WRAP - 3, Counter())
    for act, many in (("request", 3), ("push requests", 1)):
        run.step(act, many)
    run.lie("req_prod", 100)
    run.step("respond", 8)
    run.lie("req_prod", -100)
    for act in ("respond", "push responses", "read"):
        run.step(act, 8)
    run.check()
    assert run.seen["back end: ran ahead"] == 1
    assert run.model.front.consumed == 0
