"""What a device judges of a frame's fragments before it looks at the frame itself: copies of their fragment words (R3)."""

from hyp.abi.features import SG
from hyp.abi.fragment import CSUM_BLANK, GSO, LENGTH_MASK, MORE, SEGMENT_SHIFT, SEND_FLAGS, SIGNALED
from hyp.abi.nic import (
    MAX_FRAGMENTS,
    MAX_FRAME,
    MIN_FRAME,
    STATUS_BAD_CHAIN,
    STATUS_BAD_FLAGS,
    STATUS_BAD_LENGTH,
    STATUS_BAD_OFFLOAD,
    STATUS_OK,
)
from hyp.kernels import compiled
from hyp.offload.segments import needed_features, segment_of

LONGEST_CHAIN = 256
"""Descriptors that are taken for one frame: what goes on after so many, with no end in sight, is the next one."""
UNKNOWN_FLAGS = ~(LENGTH_MASK | SEND_FLAGS | (0xFFFF << SEGMENT_SHIFT)) & (1 << 63) - 1
"""Bits that no fragment to be sent may have; those of a segment size are judged with the offload."""
UNKNOWN_IN_CHAIN = ~(LENGTH_MASK | SIGNALED | MORE)
"""Bits that no fragment but a frame's first may have."""


@compiled
def fragment_fault(features: int, word: int, n: int) -> int:
    """STATUS_OK, or what is wrong with the `n`-th fragment of a frame, from 0, whose sender has accepted `features`."""
    length = word & LENGTH_MASK
    if length == 0 or length > MAX_FRAME:
        return STATUS_BAD_LENGTH if n == 0 or length > MAX_FRAME else STATUS_BAD_CHAIN
    if word & (UNKNOWN_FLAGS if n == 0 else UNKNOWN_IN_CHAIN) != 0:
        return STATUS_BAD_FLAGS
    if word & MORE != 0:
        if features & SG == 0 or word & SIGNALED != 0:
            return STATUS_BAD_FLAGS
        if (n == 0 and length < MIN_FRAME) or n == MAX_FRAGMENTS - 1:
            return STATUS_BAD_CHAIN
    return STATUS_OK


@compiled
def offload_fault(features: int, word: int) -> int:
    """STATUS_OK, or STATUS_BAD_OFFLOAD if the offload has not been accepted, or has a part that makes no sense alone."""
    gso, segment = word & GSO, segment_of(word)
    wanted = needed_features(word) & ~SG  # a short one may come in one piece
    sound = (gso == 0) == (segment == 0) and gso != GSO and (gso == 0 or word & CSUM_BLANK != 0)
    return STATUS_OK if sound and features & wanted == wanted else STATUS_BAD_OFFLOAD
