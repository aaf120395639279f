"""Xen's shared ring: against a slow model, over the wrap of its indices, against hostile peers."""

import random

import pytest

from hyp.abi.ring import REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD
from hyp.ring import (
    PROTOCOL_FAULT,
    ring_size,
)
from tests.support.rings import (
    ARM_REQ,
    ARM_RSP,
    ATTACH_BACK,
    FREE,
    HAVE_REQ,
    HAVE_RSP,
    JUST_BELOW_WRAP,
    NEXT_REQ,
    NEXT_REQ_SLOT,
    NEXT_RSP,
    NEXT_RSP_SLOT,
    PUSH_REQ,
    PUSH_RSP,
    SIGNED,
    WRAP,
    Pair,
)


@pytest.fixture(params=[0, JUST_BELOW_WRAP], ids=["from 0", "over the wrap"])
def start(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def pair(start: int) -> Pair:
    return Pair(32, start)


# --- one side at a time ----------------------------------------------------------------------------------------------


def test_fresh_page_asks_for_the_first_notification() -> None:
    pair = Pair(256, 0)
    assert [pair[offset] for offset in (REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT)] == [0, 1, 0, 1]
    assert not pair.page[16:].any()
    assert pair.request(1) == 1
    assert pair.answer(1) == 1


def test_ring_sizes_of_a_page() -> None:
    assert [ring_size(entry_bytes) for entry_bytes in (8, 12, 16, 4032)] == [256, 256, 128, 1]


def test_requests_and_responses_share_slots_in_order(pair: Pair, start: int) -> None:
    addresses = [pair(NEXT_REQ) for _ in range(32)]
    assert [pair.slot(a) for a in addresses] == [(start + k) % 32 for k in range(32)]
    assert pair(FREE) == 0
    pair(PUSH_REQ)
    assert pair[REQ_PROD] == (start + 32) % WRAP
    assert pair(HAVE_REQ) == 32
    assert [pair(NEXT_REQ_SLOT) for _ in range(32)] == addresses
    assert [pair(NEXT_RSP_SLOT) for _ in range(32)] == addresses
    assert pair(HAVE_RSP) == 0  # not before they are pushed
    pair(PUSH_RSP)
    assert pair(HAVE_RSP) == 32
    assert [pair(NEXT_RSP) for _ in range(32)] == addresses
    assert pair(FREE) == 32


def test_push_without_anything_new_does_not_notify(pair: Pair) -> None:
    assert (pair(PUSH_REQ), pair(PUSH_RSP)) == (0, 0)


def test_hold_off_until_the_event_index(pair: Pair) -> None:
    assert pair.request(1) == 1
    assert pair.request(1) == 0  # the back end is awake
    assert pair.answer(2) == 1
    assert pair(ARM_REQ) == 0
    assert pair.request(3) == 1
    assert pair(ARM_REQ) == 1  # something is there: stay awake


def test_restarted_back_end_takes_up_at_the_first_unanswered_request(pair: Pair, start: int) -> None:
    pair.request(5)
    pair.answer(2)
    pair(NEXT_REQ_SLOT)  # read, and never answered
    pair(ATTACH_BACK, pair[RSP_PROD])
    assert pair(HAVE_REQ) == 3
    assert pair.slot(pair(NEXT_REQ_SLOT)) == (start + 2) % 32


def test_signed16() -> None:
    pair = Pair(4, 0)
    assert [pair(SIGNED, value) for value in (0, 1, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)] == [0, 1, 32767, -32768, -2, -1]


# --- against a model -------------------------------------------------------------------------------------------------


class Model:
    """A ring with unbounded indices: nothing wraps. Notify iff the event index is among what was just published."""

    def __init__(self, entries: int, start: int) -> None:
        self.entries = entries
        self.written = self.published = self.taken = start  # requests
        self.answered = self.returned = self.consumed = start  # responses
        self.req_event = self.rsp_event = start + 1
        self.slots: dict[int, int] = {}

    def unwrap(self, value: int, near: int) -> int:
        """The unbounded index next to `near` whose low 32 bits are `value`."""
        return near + (value - near + WRAP // 2) % WRAP - WRAP // 2


ACTS = ["send", "send", "push", "respond", "respond", "give", "read", "read", "sleep f", "sleep b"]


def check_ready(ready: int, available: int) -> None:
    """The peer's index is cached: fewer may be reported than there are, but none only if there are none."""
    assert 0 <= ready <= available
    assert (ready == 0) == (available == 0)


@pytest.mark.parametrize("entries", [1, 4, 32])
@pytest.mark.parametrize("seed", range(3))
def test_random_operations_against_model(entries: int, start: int, seed: int) -> None:
    print(f"seed {seed}")
    choose = random.Random(seed * 100 + entries)
    pair, model = Pair(entries, start), Model(entries, start)
    for step in range(4000):
        act = choose.choice(ACTS)
        many = choose.randint(1, entries)
        if act == "send":
            assert pair(FREE) == entries - (model.written - model.consumed)
            for _ in range(min(many, pair(FREE))):
                pair.write(pair(NEXT_REQ), step)
                model.slots[model.written] = step
                model.written += 1
        elif act == "push":
            due = model.published < model.req_event <= model.written
            assert pair(PUSH_REQ) == due
            model.published = model.written
        elif act == "respond":
            ready = pair(HAVE_REQ)
            check_ready(ready, model.published - model.taken)
            for _ in range(min(many, ready)):
                address = pair(NEXT_REQ_SLOT)
                assert pair[address - pair.sring] == model.slots.pop(model.taken)
                assert pair(NEXT_RSP_SLOT) == address
                pair.write(address, ~step)
                model.slots[model.answered] = ~step % WRAP
                model.taken, model.answered = model.taken + 1, model.answered + 1
        elif act == "give":
            due = model.returned < model.rsp_event <= model.answered
            assert pair(PUSH_RSP) == due
            model.returned = model.answered
        elif act == "read":
            ready = pair(HAVE_RSP)
            check_ready(ready, model.returned - model.consumed)
            for _ in range(min(many, ready)):
                assert pair[pair(NEXT_RSP) - pair.sring] == model.slots.pop(model.consumed)
                model.consumed += 1
        elif act == "sleep f":
            awake = pair(ARM_RSP)
            assert awake == (model.returned > model.consumed)
            event = model.unwrap(pair[RSP_EVENT], model.consumed)
            assert event == model.consumed + 1 or (awake and event == model.rsp_event)
            model.rsp_event = event
        else:
            awake = pair(ARM_REQ)
            assert awake == (model.published > model.taken)
            event = model.unwrap(pair[REQ_EVENT], model.taken)
            assert event == model.taken + 1 or (awake and event == model.req_event)
            model.req_event = event
        assert (pair[REQ_PROD], pair[RSP_PROD]) == (model.published % WRAP, model.returned % WRAP)
    assert model.consumed > start + 50


# --- hostile peers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [1, 2, 31, 1 << 31, WRAP - 6])
def test_rsp_prod_ahead_of_what_was_requested(pair: Pair, start: int, jump: int) -> None:
    pair.request(5)
    pair[RSP_PROD] = start + 5 + jump
    assert pair(HAVE_RSP) == PROTOCOL_FAULT
    assert pair(HAVE_RSP) == PROTOCOL_FAULT  # it was not believed the second time either
    assert pair(FREE) == 27


def test_rsp_prod_covers_requests_that_were_not_published(pair: Pair, start: int) -> None:
    pair.request(1)
    pair(NEXT_REQ)
    pair[RSP_PROD] = start + 2
    assert pair(HAVE_RSP) == PROTOCOL_FAULT


def test_rsp_prod_goes_back(pair: Pair, start: int) -> None:
    pair.request(5)
    pair.answer(5)
    for _ in range(pair(HAVE_RSP)):
        pair(NEXT_RSP)
    pair[RSP_PROD] = start + 4
    assert pair(ARM_RSP) == 1  # look, and find the fault, rather than sleep on it
    assert pair(HAVE_RSP) == PROTOCOL_FAULT


@pytest.mark.parametrize("jump", [33, 64, 1 << 31, WRAP - 1])
def test_req_prod_overruns_the_ring(pair: Pair, start: int, jump: int) -> None:
    pair[REQ_PROD] = start + jump
    assert pair(ARM_REQ) == 1
    assert pair(HAVE_REQ) == PROTOCOL_FAULT
    pair[REQ_PROD] = start + 32
    assert pair(HAVE_REQ) == 32


def test_req_prod_reuses_slots_whose_responses_were_not_published(pair: Pair, start: int) -> None:
    pair.request(32)
    assert pair(HAVE_REQ) == 32
    for _ in range(32):
        pair(NEXT_REQ_SLOT)
        pair(NEXT_RSP_SLOT)
    pair[REQ_PROD] = start + 33  # over a response that it cannot have seen
    assert pair(HAVE_REQ) == PROTOCOL_FAULT
    pair(PUSH_RSP)
    assert pair(HAVE_REQ) == 1


def test_peer_overwrites_our_producer_index(pair: Pair, start: int) -> None:
    pair.request(2)
    pair[REQ_PROD] = start - 7
    assert pair.request(1) == 0  # hold-off is not decided by what the page says of ourselves
    assert pair[REQ_PROD] == (start + 3) % WRAP
    pair.answer(3)
    pair[RSP_PROD] = start + 1000
    pair.request(1)
    pair.answer(1)
    assert pair[RSP_PROD] == (start + 4) % WRAP


@pytest.mark.parametrize("event", [0, 1, 1 << 31, JUST_BELOW_WRAP, WRAP - 1])
def test_garbage_event_index_costs_at_most_a_notification(pair: Pair, start: int, event: int) -> None:
    pair[REQ_EVENT] = pair[RSP_EVENT] = event
    assert pair.request(3) in (0, 1)
    assert pair.answer(3) in (0, 1)
    assert pair(HAVE_RSP) == 3
