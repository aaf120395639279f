"""io_uring's entries, and the system calls of its rings: linux/io_uring.h, linux/fs.h. The numbers are every architecture's."""

from typing import Final

SYS_SETUP, SYS_ENTER, SYS_REGISTER = 425, 426, 427
OP_NOP, OP_READV, OP_WRITEV = 0, 1, 2
FIXED_FILE: Final = 1  # sqe.flags: the descriptor is an index into those registered
NOWAIT: Final = 8  # sqe.rw_flags: RWF_NOWAIT
ENTER_GETEVENTS: Final = 1
SQE_BYTES, CQE_BYTES = 64, 16
