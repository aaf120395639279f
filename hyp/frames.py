"""A frame as compiled code meets it: its header's words, the descriptor that names it, the completion that says what became of it.

A header is two words, each read once, of which 14 bytes are the header's::

    head0   destination address (6 bytes), first two bytes of the source address
    head1   the other four, EtherType, and two bytes of what follows

Addresses are integers, the first byte on the wire lowest (`hyp.abi.nic.mac_to_int`).

Descriptors and completions are those of hyp/abi/nic.py. The driver's side of them is hyp/verbs.py; the device's are the NIC's
engines (nic/) and the device model (hyp/monitor/machine.py). What is judged here is the caller's own copy of a word (R3).
"""

from hyp.abi.fragment import LENGTH_MASK
from hyp.abi.nic import (
    DESC_SIGNALED,
    MAC_MASK,
    MAX_LONE_FRAME,
    MIN_BUFFER,
    MIN_FRAME,
    STATUS_BAD_FLAGS,
    STATUS_BAD_LENGTH,
    STATUS_OK,
)
from hyp.atomics import store64, store64_release
from hyp.kernels import compiled

SOURCE_MASK = 0xFFFF_FFFF
"""The part of a header's second word that belongs to the source address."""


@compiled
def destination_of(head0: int) -> int:
    """The address that a frame goes to."""
    return head0 & MAC_MASK


@compiled
def source_of(head0: int, head1: int) -> int:
    """The address that a frame says it comes from."""
    return ((head0 >> 48) & 0xFFFF) | ((head1 & SOURCE_MASK) << 16)


@compiled
def head_words(destination: int, source: int, rest: int) -> tuple[int, int]:
    """A header as two words; `rest` is the second word of another header, for its EtherType and beyond."""
    return destination | ((source & 0xFFFF) << 48), (source >> 16) | (rest & ~SOURCE_MASK)


# --- descriptors and completions ---------------------------------------------------------------------------------------


@compiled
def owner_bit(index: int, size: int) -> int:
    """What the owner bit of completion `index` becomes when it is written: 1 on a ring's first pass, 0 on the second, and so on.

    As the phase tag of NVM Express (base specification, completion queue entry): nobody has to clear a ring.
    """
    return 0 if index & size else 1


@compiled
def write_completion(slot: int, size: int, prod: int, index: int, length: int, status: int) -> None:
    """Write completion `prod` of a queue of `size`; `slot` is its address. The owner bit comes last, with release."""
    owner = owner_bit(prod, size)
    store64(slot, index | (length << 32))
    store64_release(slot + 8, status | (owner << 32))


@compiled
def write_fragment_completion(slot: int, size: int, prod: int, index: int, word: int) -> None:
    """`write_completion` of a buffer that was filled with the fragment that `word`, a fragment word, says."""
    flags, segment = (word >> 32) & 0xFFFF, word >> 48
    store64(slot, index | ((word & LENGTH_MASK) << 32))
    store64_release(slot + 8, (flags << 16) | (owner_bit(prod, size) << 32) | (segment << 48))


@compiled
def completed_fragment(first: int, second: int) -> int:
    """The fragment word in a completion, of which these are our copies of the two words."""
    return ((first >> 32) & LENGTH_MASK) | (((second >> 16) & 0xFFFF) << 32) | ((second >> 48) << 48)


@compiled
def send_fault(word: int) -> int:
    """STATUS_OK if the descriptor of a frame in one piece has a good length and flags, else what is wrong."""
    length = word & LENGTH_MASK
    if length < MIN_FRAME or length > MAX_LONE_FRAME:
        return STATUS_BAD_LENGTH
    return STATUS_OK if (word >> 32) & LENGTH_MASK & ~DESC_SIGNALED == 0 else STATUS_BAD_FLAGS


@compiled
def takes_frame(word: int, length: int) -> bool:
    """True if the buffer of a receive descriptor is large enough for `length` bytes, and no flag is set."""
    return word & LENGTH_MASK >= length and word >> 32 == 0


@compiled
def takes_part(word: int, left: int) -> bool:
    """True if the buffer of a receive descriptor takes the `left` bytes of a frame, or enough of them, and no flag is set."""
    taken: bool = takes_frame(word, min(left, MIN_BUFFER))
    return taken


@compiled
def lies_within(addr: int, length: int, size: int) -> bool:
    """True if [addr, addr + length) is within [0, size). `addr` may be any 64 bits; `length` has been checked."""
    return 0 <= addr <= size - length
