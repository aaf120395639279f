"""A capture file as a network has it, made by a seed: mixed sizes and protocols, some frames snapped, some too long for the MTU."""

import random
import struct
from pathlib import Path

from hyp.capture.format import Frame
from hyp.capture.write import CaptureWriter

SEED = 20_261_127
START_NS = 1_700_000_000_000_000_000
A, B = bytes.fromhex("3c5282010203"), bytes.fromhex("a4bf01aabbcc")


def traffic(seed: int = SEED, count: int = 300, longest: int = 1514) -> list[Frame]:
    """Frames between two stations, 60 to `longest` bytes, 20 µs apart at most; one in 20 is snapped, one in 50 has 3000 bytes."""
    rng, ns, frames = random.Random(seed), START_NS, []
    for number in range(count):
        ns += rng.randrange(20_000)
        length = 3000 if number % 50 == 49 else rng.choice([60, 61, 66, rng.randrange(60, longest + 1), longest, longest])
        kind = rng.choice([0x0800, 0x86DD, 0x0806, 0x88CC, 0x0026])
        ends = (A, B) if rng.random() < 0.6 else (B, A)
        data = b"".join(ends) + struct.pack("!H", kind) + rng.randbytes(length - 14)
        frames.append(Frame(data[: 54 if number % 20 == 7 else None], length, ns))
    return frames


def write(path: Path, frames: list[Frame]) -> Path:
    """A pcapng file of them."""
    with CaptureWriter(str(path)) as writer:
        writer.interface("eth0")
        for frame in frames:
            writer.frame(frame)
    return path


def replayed(frames: list[Frame], source: bytes, to: bytes, longest: int = 1518) -> list[bytes]:
    """What a receiver gets of them: addresses rewritten, snapped frames padded, those that are too long left out."""
    return [to + source + frame.data[12:].ljust(frame.length - 12, b"\0") for frame in frames if frame.length <= longest]
