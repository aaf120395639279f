"""Both ends of a shared ring in one process, for tests: each operation of hyp/ring.py by number, on a page of their own."""

import mmap

import numba
import numpy as np

from hyp.abi.ring import FIRST_SLOT, PAGE_BYTES, SRING
from hyp.kernels import entry, i64
from hyp.ring import (
    RING,
    arm_requests,
    arm_responses,
    attach_back,
    attach_front,
    free_requests,
    next_request,
    next_request_slot,
    next_response,
    next_response_slot,
    push_requests,
    push_responses,
    signed16,
    sring_init,
    unconsumed_requests,
    unconsumed_responses,
)

RINGS = numba.types.Array(numba.from_dtype(RING), 1, "C")
FRONT, BACK = 0, 1
WRAP = 1 << 32
JUST_BELOW_WRAP = 0xFFFF_FFF0
ENTRY_BYTES = 12

(INIT, ATTACH_FRONT, ATTACH_BACK, FREE, NEXT_REQ, PUSH_REQ, HAVE_RSP, NEXT_RSP, ARM_RSP, HAVE_REQ, NEXT_REQ_SLOT,
 NEXT_RSP_SLOT, PUSH_RSP, ARM_REQ, SIGNED) = range(15)  # fmt: skip


@entry(i64(RINGS, i64, i64, i64, i64))
def operate(rings, op, sring, entries, argument):  # type: ignore[no-untyped-def]
    """One operation of either side."""
    front, back = rings[0], rings[1]
    if op == INIT:
        sring_init(sring, argument)
    elif op == ATTACH_FRONT:
        attach_front(front, sring, entries, ENTRY_BYTES, argument)
    elif op == ATTACH_BACK:
        attach_back(back, sring, entries, ENTRY_BYTES, argument)
    elif op == FREE:
        return free_requests(front)
    elif op == NEXT_REQ:
        return next_request(front)
    elif op == PUSH_REQ:
        return push_requests(front)
    elif op == HAVE_RSP:
        return unconsumed_responses(front)
    elif op == NEXT_RSP:
        return next_response(front)
    elif op == ARM_RSP:
        return arm_responses(front)
    elif op == HAVE_REQ:
        return unconsumed_requests(back)
    elif op == NEXT_REQ_SLOT:
        return next_request_slot(back)
    elif op == NEXT_RSP_SLOT:
        return next_response_slot(back)
    elif op == PUSH_RSP:
        return push_responses(back)
    elif op == ARM_REQ:
        return arm_requests(back)
    elif op == SIGNED:
        return signed16(argument)
    return 0


class Pair:
    """A shared page with a front end and a back end in this process."""

    def __init__(self, entries: int, start: int) -> None:
        self.entries = entries
        self.memory = mmap.mmap(-1, PAGE_BYTES)
        self.page = np.frombuffer(self.memory, np.uint8)
        self.header = np.frombuffer(self.memory, SRING, 1)[0:1]
        self.words = np.frombuffer(self.memory, "<u4")
        self.sring = int(self.page.ctypes.data)
        self.rings = np.zeros(2, RING)
        for op in (INIT, ATTACH_FRONT, ATTACH_BACK):
            self(op, start)

    def __call__(self, op: int, argument: int = 0) -> int:
        return int(operate(self.rings, op, self.sring, self.entries, argument))

    def __getitem__(self, offset: int) -> int:
        return int(self.words[offset // 4])

    def __setitem__(self, offset: int, value: int) -> None:
        self.words[offset // 4] = value % WRAP

    def slot(self, address: int) -> int:
        """Number of the slot at an address."""
        number, rest = divmod(address - self.sring - FIRST_SLOT, ENTRY_BYTES)
        assert rest == 0
        assert 0 <= number < self.entries
        return number

    def write(self, address: int, value: int) -> None:
        self[address - self.sring] = value

    def request(self, count: int) -> int:
        for _ in range(count):
            self(NEXT_REQ)
        return self(PUSH_REQ)

    def answer(self, count: int) -> int:
        assert self(HAVE_REQ) >= count
        for _ in range(count):
            self(NEXT_REQ_SLOT)
            self(NEXT_RSP_SLOT)
        return self(PUSH_RSP)
