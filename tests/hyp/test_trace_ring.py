"""The trace ring: what a loop tells is read as it was told, or is missed and counted; a ring that is nonsense harms nobody."""

import itertools
import random
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyp.abi.frame import ETHERTYPE_WIRE
from hyp.abi.nic import mac_to_int
from hyp.abi.trace import BLOCK, COMMITTED_AT, DATA_AT, RECORD, RECORDS_AT, RESERVED_AT, Moment
from hyp.events import new_wait
from hyp.kernels import entry, i64, void
from hyp.load.frames import write_test_frame
from hyp.memory import Mapping
from hyp.trace.ring import PASSED, RECEIVED, TRACER, key_of, trace_burst, trace_frame, trace_pieces
from lab.trace.ring import Told, TraceRing

SEED = 11
TO, FROM = mac_to_int("02:00:00:00:00:01"), mac_to_int("02:00:00:00:00:02")


@entry(void(i64, i64, i64, i64, i64))
def tell_test_frames(tracer: int, frame: int, length: int, first: int, count: int) -> None:
    """Tell of frames first … first + count − 1 of stream 5, each written anew."""
    for sequence in range(first, first + count):
        write_test_frame(frame, length, TO | (FROM << 48), (FROM >> 16) | (ETHERTYPE_WIRE << 32), 5, sequence, 0)
        trace_frame(tracer, PASSED, 7, -1, 0, frame, length, length, 0)


@entry(void(i64, i64, i64, i64))
def tell_pieces(tracer: int, pieces: int, count: int, length: int) -> None:
    trace_pieces(tracer, PASSED, 1, 2, 0, pieces, count, length, 0)


@entry(void(i64, i64, i64))
def tell_burst(tracer: int, burst: int, n: int) -> None:
    trace_burst(tracer, RECEIVED, 0, burst, n)


@entry(i64(i64, i64))
def the_key(frame: int, there: int) -> int:
    return key_of(frame, there)


class Teller:
    """A loop that tells."""

    def __init__(self, ring: TraceRing, every: int = 1, snap: int = 64) -> None:
        self._mapping = Mapping(ring.fd, DATA_AT + ring.capacity)
        self._tracer, self._wait = np.zeros(1, TRACER), new_wait(-1, 0)
        self._wait[0]["woken_ns"] = 77
        row = self._tracer[0]
        row["ring"], row["mask"], row["every"], row["snap"] = self._mapping.address, ring.capacity - 1, every - 1, snap
        row["wait"] = self._wait.ctypes.data
        self.address = int(self._tracer.ctypes.data)
        self._frame = np.zeros(70_000, np.uint8)

    def tell(self, length: int, first: int, count: int) -> None:
        tell_test_frames(self.address, int(self._frame.ctypes.data), length, first, count)

    def tell_in_pieces(self, frame: bytes, cuts: list[int]) -> None:
        content, edges = np.frombuffer(frame, np.uint8).copy(), [0, *sorted(cuts), len(frame)]
        table = np.array([[content.ctypes.data + a, b - a] for a, b in itertools.pairwise(edges)], np.int64)
        tell_pieces(self.address, int(table.ctypes.data), len(table), len(frame))


def numbers(told: Told) -> list[int]:
    """Sequence numbers, from the frames' own bytes; each agrees with its key."""
    found = []
    for k in range(len(told.frames)):
        sequence = int.from_bytes(told.frame(k)[16:24], "little")
        assert int(told.heads[k]["key"]) == (5 << 47) | sequence
        found.append(sequence)
    return found


def test_what_was_told_is_read_once_and_in_order() -> None:
    with TraceRing("order") as ring:
        teller, begin = Teller(ring), 0
        for count in (1, 0, 5, 1000, 3):
            teller.tell(100, begin, count)
            told = ring.read()
            assert numbers(told) == list(range(begin, begin + count))
            assert told.missed == 0
            begin += count
            for head in told.heads:
                assert (head["moment"], head["port"], head["other"], head["length"], head["captured"], head["woken_ns"]) == (
                    Moment.PASSED, 7, -1, 100, 64, 77,
                )  # fmt: skip
        assert list(ring.read().frames) == []


@pytest.mark.parametrize("snap", [64, 100, 1500, 65_536])
def test_records_of_any_size_fit_and_none_crosses_a_block(snap: int) -> None:
    print(f"seed {SEED}")
    chance, sequence = random.Random(SEED), 0
    with TraceRing("sizes") as ring:
        teller = Teller(ring, snap=snap)
        for _ in range(300):
            length, count = chance.choice([48, 64, 65, 1514, 9014, 65_000]), chance.randrange(1, 4)
            teller.tell(length, sequence, count)
            told = ring.read()
            assert numbers(told) == list(range(sequence, sequence + count))
            assert [len(told.frame(k)) for k in range(count)] == [min(length, snap)] * count
            assert told.missed == 0
            sequence += count


def test_what_is_written_over_is_missed_and_counted() -> None:
    with TraceRing("over", 4 * BLOCK) as ring:
        teller, many = Teller(ring), 20_000
        teller.tell(64, 0, many)
        told = ring.read()
        found = numbers(told)
        assert found == list(range(many - len(found), many))
        assert found
        assert told.missed == many - len(found) > 0
        teller.tell(64, many, 2)
        assert numbers(ring.read()) == [many, many + 1]


def test_a_reader_beside_a_writer_believes_nothing_that_is_written_over() -> None:
    """Each record that is read is whole, and they are in order; those that are not read are counted."""
    many, length = 400_000, 200
    with TraceRing("beside", 2 * BLOCK) as ring:
        teller = Teller(ring, snap=length)
        writer = threading.Thread(target=teller.tell, args=(length, 0, many))
        writer.start()
        found: list[int] = []
        missed = 0
        while writer.is_alive() or (found and found[-1] != many - 1):
            told = ring.read()
            for k in range(len(told.frames)):
                frame = told.frame(k)
                assert frame[16:24] == int(int(told.heads[k]["key"]) & ((1 << 47) - 1)).to_bytes(8, "little")
                assert len(frame) == length
            found += numbers(told)
            missed += told.missed
        writer.join()
        assert found == sorted(set(found))
        assert len(found) + missed == many


@given(data=st.data(), every=st.sampled_from([1, 2, 16]))
@settings(max_examples=40, deadline=None)
def test_a_frame_in_pieces_has_the_key_of_the_whole(data: st.DataObject, every: int) -> None:
    frame = data.draw(st.binary(min_size=14, max_size=300))
    cuts = data.draw(st.lists(st.integers(1, len(frame) - 1), max_size=5, unique=True))
    content = np.frombuffer(frame, np.uint8).copy()
    key = the_key(int(content.ctypes.data), len(frame))
    with TraceRing("pieces") as ring:
        teller = Teller(ring, every, snap=256)
        teller.tell_in_pieces(frame, cuts)
        told = ring.read()
        assert len(told.frames) == (1 if key & (every - 1) == 0 else 0)
        for k in range(len(told.frames)):
            assert told.frame(k) == frame[:256]
            assert int(told.heads[k]["key"]) == key & (1 << 64) - 1


def frame_of(stream: int, sequence: int) -> bytes:
    return (
        bytes(12) + ETHERTYPE_WIRE.to_bytes(2, "little") + stream.to_bytes(2, "little") + sequence.to_bytes(8, "little") + bytes(40)
    )


RUNS = st.one_of(
    st.tuples(st.integers(0, 3), st.integers(0, 1 << 40), st.integers(1, 40)).map(
        lambda run: [frame_of(run[0], run[1] + k) for k in range(run[2])]
    ),
    st.lists(st.binary(min_size=14, max_size=80), min_size=1, max_size=5),
)


@given(runs=st.lists(RUNS, min_size=1, max_size=3), every=st.sampled_from([1, 2, 16, 64]))
@settings(max_examples=120, deadline=None)
def test_of_a_burst_those_that_are_sampled_are_told_in_order(runs: list[list[bytes]], every: int) -> None:
    frames = [frame for run in runs for frame in run]
    contents = [np.frombuffer(frame, np.uint8).copy() for frame in frames]
    burst = np.array([[content.ctypes.data, len(content)] for content in contents], np.int64)
    wanted = [frame for frame, at in zip(frames, burst[:, 0], strict=True) if the_key(int(at), len(frame)) & (every - 1) == 0]
    with TraceRing("burst") as ring:
        teller = Teller(ring, every, snap=128)
        tell_burst(teller.address, int(burst.ctypes.data), len(burst))
        told = ring.read()
        assert [told.frame(k) for k in range(len(told.frames))] == wanted


def test_a_burst_of_nothing_is_nothing() -> None:
    with TraceRing("burst") as ring:
        teller = Teller(ring, 16)
        tell_burst(teller.address, 0, 0)
        assert len(ring.read().frames) == 0


@pytest.mark.parametrize(("kind", "protocol", "at", "size"), [
    (b"\x08\x00", 6, 24, 2), (b"\x08\x00", 6, 50, 2), (b"\x08\x00", 17, 40, 2), (b"\x86\xdd", 17, 60, 2),
])  # fmt: skip
def test_a_checksum_that_is_filled_in_changes_no_key(kind: bytes, protocol: int, at: int, size: int) -> None:
    frame = bytearray(range(80))
    frame[12:14] = kind
    frame[23 if kind == b"\x08\x00" else 20] = protocol

    def key() -> int:
        content = np.frombuffer(bytes(frame), np.uint8).copy()
        return int(the_key(int(content.ctypes.data), len(frame)))

    before = key()
    frame[at : at + size] = bytes(size)
    assert key() == before
    frame[30] ^= 1
    assert key() != before


@given(
    content=st.binary(max_size=4096), at=st.integers(0, 2 * BLOCK - 1),
    words=st.tuples(*(st.integers(0, (1 << 64) - 1) for _ in range(3))), then=st.integers(0, 3),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_a_hostile_ring_harms_nobody(content: bytes, at: int, words: tuple[int, ...], then: int) -> None:
    """Anything may be anywhere in it: it is read in bounded time, and what is read lies within what was copied."""
    with TraceRing("hostile", 2 * BLOCK) as ring:
        for where, word in zip((COMMITTED_AT, RESERVED_AT, RECORDS_AT), words, strict=True):
            ring._map[where : where + 8] = word.to_bytes(8, "little")
        end = min(at + len(content), ring.capacity)
        ring._map[DATA_AT + at : DATA_AT + end] = content[: end - at]
        for _ in range(then + 1):
            told = ring.read()
            assert len(told.heads) == len(told.frames)
            for k in range(len(told.frames)):
                assert told.frames[k] >= RECORD.itemsize
                assert len(told.frame(k)) == int(told.heads[k]["captured"]) <= BLOCK
            assert told.missed >= 0
