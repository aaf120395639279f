"""An io_uring for one descriptor, made with the three system calls and nothing else; plain Python, so that whoever asks can.

Layouts: linux/io_uring.h (struct io_uring_params, io_sqring_offsets, io_cqring_offsets).
"""

import ctypes
import errno
import mmap
import os
import struct
from typing import Final

from hyp.abi.io_uring import (
    CQE_BYTES,
    ENTER_GETEVENTS,
    FIXED_FILE,
    NOWAIT,
    OP_WRITEV,
    SQE_BYTES,
    SYS_ENTER,
    SYS_REGISTER,
    SYS_SETUP,
)

_OFF_SQ_RING, _OFF_SQES = 0, 0x10000000
_FEAT_SINGLE_MMAP: Final = 1
_REGISTER_FILES: Final = 2
_PARAMS = struct.Struct("10I 8IQ 8IQ")  # struct io_uring_params
_FEATURES, _SQ_OFFSETS, _CQ_OFFSETS = 5, 10, 19
_SQ_TAIL, _SQ_MASK, _SQ_ARRAY = (_SQ_OFFSETS + k for k in (1, 2, 6))
_CQ_HEAD, _CQ_TAIL, _CQ_MASK, _CQES = (_CQ_OFFSETS + k for k in (0, 1, 2, 5))

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mmap.restype = ctypes.c_void_p
_MAP_FAILED = ctypes.c_void_p(-1).value


def _syscall(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


class Ring:
    """A ring of `entries` requests (a power of two), all on the file `fd`, which it holds a reference to.

    The addresses are those that a submitter needs; indices run freely, modulo 2³². OSError as of io_uring_setup(2): ENOSYS, EPERM
    (switched off, or by a seccomp filter), ENOMEM; EINVAL where the kernel is older than 5.4.
    """

    def __init__(self, fd: int, entries: int) -> None:
        params = ctypes.create_string_buffer(_PARAMS.size)
        self.fd = _syscall(SYS_SETUP, ctypes.c_uint(entries), params)  # close-on-exec, as the kernel makes them
        self._maps: list[tuple[int, int]] = []
        try:
            told = _PARAMS.unpack(params.raw)
            if not told[_FEATURES] & _FEAT_SINGLE_MMAP:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            rings = self._map(max(told[_SQ_ARRAY] + 4 * told[0], told[_CQES] + CQE_BYTES * told[1]), _OFF_SQ_RING)
            self.sqes = self._map(SQE_BYTES * told[0], _OFF_SQES)
            self.sq_tail, self.cq_head, self.cq_tail = (rings + told[k] for k in (_SQ_TAIL, _CQ_HEAD, _CQ_TAIL))
            self.cqes = rings + told[_CQES]
            self.sq_mask, self.cq_mask = (ctypes.c_uint32.from_address(rings + told[k]).value for k in (_SQ_MASK, _CQ_MASK))
            for k in range(told[0]):  # slot k of the index array always names entry k
                ctypes.c_uint32.from_address(rings + told[_SQ_ARRAY] + 4 * k).value = k
            _syscall(SYS_REGISTER, ctypes.c_int(self.fd), ctypes.c_uint(_REGISTER_FILES), (ctypes.c_int * 1)(fd), ctypes.c_uint(1))
        except BaseException:
            self.close()
            raise

    def _map(self, size: int, offset: int) -> int:
        """Not by Python's mmap, which keeps a copy of the descriptor."""
        protection, shared = ctypes.c_int(mmap.PROT_READ | mmap.PROT_WRITE), ctypes.c_int(mmap.MAP_SHARED)
        address = _libc.mmap(None, ctypes.c_size_t(size), protection, shared, ctypes.c_int(self.fd), ctypes.c_long(offset))
        if address == _MAP_FAILED:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._maps.append((address, size))
        return int(address)

    def request(self, operation: int, address: int, count: int) -> int:
        """Have one request carried out, for whoever needs no speed: bytes moved, or −errno. `address`: of `count` iovecs."""
        tail = ctypes.c_uint32.from_address(self.sq_tail)
        entry = struct.pack("<BBHiqQIIQ", operation, FIXED_FILE, 0, 0, -1, address, count, NOWAIT, 0)
        ctypes.memmove(self.sqes + (tail.value & self.sq_mask) * SQE_BYTES, entry, len(entry))
        tail.value += 1
        _syscall(SYS_ENTER, *map(ctypes.c_uint, (self.fd, 1, 1, ENTER_GETEVENTS)), None, ctypes.c_size_t(0))
        head = ctypes.c_uint32.from_address(self.cq_head)
        result = ctypes.c_int32.from_address(self.cqes + (head.value & self.cq_mask) * CQE_BYTES + 8).value
        head.value += 1
        return result

    def close(self) -> None:
        """Let go of it. Nobody may use its addresses from now on."""
        os.close(self.fd)
        for address, size in self._maps:
            _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
        self._maps.clear()


def why_plain(fd: int) -> str | None:
    """None if requests on the TAP `fd` can go through a ring, in the submitter's own time; otherwise why not.

    What is tried is a write too short for a virtio_net_hdr: the TAP refuses it itself, and nothing is sent. A kernel that can't
    write to a TAP without perhaps waiting says EOPNOTSUPP, or EAGAIN.
    """
    try:
        ring = Ring(fd, 1)
    except OSError as error:
        return f"io_uring: {error.strerror}"
    try:
        byte = ctypes.create_string_buffer(1)
        iovec = (ctypes.c_uint64 * 2)(ctypes.addressof(byte), 1)
        result = ring.request(OP_WRITEV, ctypes.addressof(iovec), 1)
    except OSError as error:
        return f"io_uring: {error.strerror}"
    finally:
        ring.close()
    return None if result == -errno.EINVAL else "io_uring: this kernel does not write to a TAP without waiting"
