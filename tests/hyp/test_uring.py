"""Batches of vectored calls by io_uring: done in order, each with its own outcome, and a clear word where there are none."""

import errno
import os
import resource
import socket
from collections.abc import Iterator

import numpy as np
import pytest

from hyp.abi.io_uring import OP_READV, OP_WRITEV
from hyp.kernels import entry, i64
from hyp.uring.batch import NOT_DONE, Batches, outcome, run_batch, set_request, uring_at
from hyp.uring.ring import Ring, why_plain

ENTRIES = 8
WORDS = np.arange(1, ENTRIES + 1, dtype=np.int64)


@entry(i64(i64, i64, i64, i64))
def batch_of(address: int, operation: int, iovecs: int, n: int) -> int:
    """Run `n` requests of an iovec each. Returns how many the kernel took."""
    u = uring_at(address)
    for k in range(n):
        set_request(u, k, operation, iovecs + 16 * k, 1)
    run_batch(u, n)
    done = 0
    for k in range(n):
        done += outcome(u, k) != NOT_DONE
    return done


class Batch:
    """One ring and the batches that a test has carried out on it."""

    def __init__(self, fd: int) -> None:
        self.ring = Ring(fd, ENTRIES)
        self.batches = Batches(self.ring)

    def run(self, operation: int, buffers: list["np.ndarray[tuple[int], np.dtype[np.uint8]]"]) -> tuple[int, list[int]]:
        iovecs = np.array([(buffer.ctypes.data, buffer.nbytes) for buffer in buffers], np.int64)
        done = batch_of(self.batches.address, operation, int(iovecs.ctypes.data), len(buffers))
        return done, [int(value) for value in self.batches.outcomes[: len(buffers)]]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


def buffers_of(*texts: bytes) -> list["np.ndarray[tuple[int], np.dtype[np.uint8]]"]:
    return [np.frombuffer(text, np.uint8).copy() for text in texts]


def test_a_batch_is_done_in_order_past_the_ring_s_end(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    batch = Batch(ours.fileno())
    for round_ in range(5):  # 5 times 5 of 8 entries: every place, and over the end
        texts = [f"{round_} {k}".encode() * (k + 1) for k in range(5)]
        assert batch.run(OP_WRITEV, buffers_of(*texts)) == (5, [len(text) for text in texts])
        assert [theirs.recv(99) for _ in texts] == texts


def test_each_request_has_its_own_outcome(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    batch = Batch(ours.fileno())
    theirs.send(b"one")
    theirs.send(b"three")
    buffers = buffers_of(bytes(4), bytes(4), bytes(4))
    assert batch.run(OP_READV, buffers) == (3, [3, 4, -errno.EAGAIN])
    assert [bytes(buffer) for buffer in buffers] == [b"one\0", b"thre", bytes(4)]


def test_what_the_kernel_does_not_take_is_not_done_and_the_ring_is_not_used_again(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    batch = Batch(ours.fileno())
    os.close(batch.ring.fd)
    assert batch.run(OP_WRITEV, buffers_of(b"a", b"b")) == (0, [NOT_DONE, NOT_DONE])
    assert batch.batches.broken
    with pytest.raises(BlockingIOError):
        theirs.recv(1)


def test_a_descriptor_that_is_no_tap_is_refused_with_a_reason(pair: tuple[socket.socket, socket.socket]) -> None:
    reason = why_plain(pair[0].fileno())
    assert reason is not None
    assert "TAP" in reason
    assert pair[1].recv(9) == b"\0"


def test_where_there_can_be_no_ring_the_reason_is_the_kernels(pair: tuple[socket.socket, socket.socket]) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
            status = 0 if why_plain(pair[0].fileno()) == f"io_uring: {os.strerror(errno.EMFILE)}" else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_ring_has_one_descriptor_and_leaves_none(pair: tuple[socket.socket, socket.socket]) -> None:
    before = os.listdir("/proc/self/fd")
    ring = Ring(pair[0].fileno(), ENTRIES)
    assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    ring.close()
    assert os.listdir("/proc/self/fd") == before
