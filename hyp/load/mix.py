"""Streams of frames of several sizes: those of a capture file, in its order, or IMIX.

They are test frames as any stream's, and verified as those are; only their lengths are the file's, of its first `MOST` frames, over
and over. A length that no frame can have here becomes the nearest: at least `SHORTEST`, the least that Ethernet has without its
checksum, at most as long as the MTU allows (captures of segments that a NIC has put together have longer ones).

IMIX is the *simple IMIX*: 7 : 4 : 1 IP packets of 40, 576 and 1500 bytes (Agilent, "The Journal of Internet Test Methodologies",
2004; RFC 6985 has the terms), which are Ethernet frames of 64, 594 and 1518 bytes with the checksum: 60, 590 and 1514 as they are
counted here.
"""

import functools
import itertools
from typing import Any, Final

import numpy as np

from hyp.capture.format import CaptureError
from hyp.capture.read import CaptureReader

IMIX: Final = "imix"
SHORTEST: Final = 60
MOST: Final = 1 << 16
SIMPLE_IMIX: Final = (60, 590, 60, 60, 590, 60, 1514, 60, 590, 60, 590, 60)
"""Twelve frames, as far from their like as can be."""


@functools.lru_cache(maxsize=4)
def sizes_of(traffic: str, longest: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Lengths of a mix's frames, none above `longest`. `traffic`: `IMIX`, or a capture file. CaptureError if it is none."""
    if traffic == IMIX:
        sizes = list(SIMPLE_IMIX)
    else:
        with CaptureReader(traffic) as reader:
            sizes = [frame.length for frame in itertools.islice(reader, MOST)]
        if not sizes:
            raise CaptureError(f"{traffic}: there is no frame in it")
    return np.clip(np.array(sizes, np.int64), SHORTEST, longest)
