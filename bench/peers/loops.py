"""The loops of peers whose two ends are sockets: one sends test frames, one receives and verifies them.

Both touch what the lab's guests touch: the sender writes every byte of each payload, the receiver checksums it, in 256 buffers
with the lab's stride. A thread of the worker runs the loop; the control thread sees it through a few words:

=====  ===========  ==================================================================
  0    STOP         written by the control thread: end (the receiver: once nothing comes)
 64    COUNT        written by the loop: frames sent, or received and found good
 72    ERRNO        written by the loop: why it ended by itself, 0 if it was told to
=====  ===========  ==================================================================
"""

from hyp.abi.frame import ETHERTYPE_WIRE
from hyp.abi.sizes import FRAME_BUFFER
from hyp.atomics import (
    clock_ns,
    load32,
    load64_acquire,
    store64_release,
    sys_errno_location,
    sys_recvmmsg,
    sys_sendmmsg,
)
from hyp.kernels import compiled, entry, i64, void
from hyp.load.frames import verify, write_test_frame

STOP, COUNT, ERRNO = 0, 64, 72
CONTROL_BYTES = 128
BATCH, BUFFERS = 64, 256
# struct mmsghdr and struct iovec of 64-bit Linux (recvmmsg(2))
MMSGHDR_BYTES, MSG_IOV, MSG_IOVLEN, MSG_LEN = 64, 16, 24, 56
IOVEC_BYTES = 16

EINTR, EAGAIN, EPIPE, ENOBUFS = 4, 11, 32, 105
MSG_NOSIGNAL, MSG_WAITFORONE = 0x4000, 0x10000
HEAD0 = 0x0002_0200_0000_0002  # from 02:00:00:00:00:02 to 02:00:00:00:02:00, read by nobody
HEAD1 = ETHERTYPE_WIRE << 32


@compiled
def _is_transient(code: int) -> bool:
    """The socket's timeout, which lets the loop look at STOP; or memory that will be free again."""
    return code in (EAGAIN, EINTR, ENOBUFS)


@entry(void(i64, i64, i64, i64, i64, i64))
def send(control, fd, headers, buffers, length, stream):
    """Send frames of `length` bytes from sequence number 0, in batches, until told to stop."""
    sent = 0
    slot = 0
    while load64_acquire(control + STOP) == 0:
        for k in range(BATCH):
            write_test_frame(buffers + (slot + k) * FRAME_BUFFER, length, HEAD0, HEAD1, stream, sent + k, 0)
        done = 0
        while done < BATCH:
            n = sys_sendmmsg(fd, headers + (slot + done) * MMSGHDR_BYTES, BATCH - done, MSG_NOSIGNAL)
            if n > 0:
                done += n
                continue
            code = load32(sys_errno_location())
            if not _is_transient(code):
                store64_release(control + ERRNO, code)
                return
            if load64_acquire(control + STOP) != 0:
                break
        sent += done
        store64_release(control + COUNT, sent)
        slot = (slot + BATCH) % BUFFERS


@entry(void(i64, i64, i64, i64, i64, i64))
def receive(control, fd, headers, buffers, trackers, row):
    """Receive and verify frames until told to stop and nothing has come for the socket's timeout."""
    good = 0
    slot = 0
    while True:
        n = sys_recvmmsg(fd, headers + slot * MMSGHDR_BYTES, BATCH, MSG_WAITFORONE, 0)
        if n <= 0:
            code = load32(sys_errno_location())
            if not _is_transient(code):
                store64_release(control + ERRNO, code)
                return
            if load64_acquire(control + STOP) != 0:
                return
            continue
        now = clock_ns()
        for k in range(n):
            length = load32(headers + (slot + k) * MMSGHDR_BYTES + MSG_LEN)
            if length == 0:  # the end of a connection
                store64_release(control + ERRNO, EPIPE)
                return
            if verify(trackers, row, buffers + (slot + k) * FRAME_BUFFER, length, now):
                good += 1
        store64_release(control + COUNT, good)
        slot = (slot + BATCH) % BUFFERS
