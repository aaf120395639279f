"""Grant tables (version 1) and batched grant copy, after Xen's ``xen/grant_table.h``.

A domain's grant table is an array of 8-byte entries in pages that it shares with the hypervisor. The index of an entry
is the *grant reference*. An entry says: domain `domid` may use my page `frame`::

     0       2       4           8
    +-------+-------+-----------+
    | flags | domid | frame     |
    +-------+-------+-----------+

Who writes what, and how it is read (R2):

===================  =================  ==========================================================================
field                writer             ordering
===================  =================  ==========================================================================
domid, frame         granting domain    before `flags`
flags: type and      granting domain    store-release when the grant is made; to revoke, compare-and-swap to 0 from a
GTF_READONLY                            value with neither GTF_READING nor GTF_WRITING
flags: GTF_READING,  hypervisor         set by a 64-bit compare-and-swap over the whole entry, so that what is marked is
GTF_WRITING                             what was judged; cleared by a 16-bit one after the last access to the page
===================  =================  ==========================================================================

The hypervisor reads an entry with one 64-bit load. GTF_READING means "in use at all", GTF_WRITING "in use for
writing": a domain whose revocation succeeded knows that nobody touches the page any more. References 0 to 7 are
reserved (0 is the console's, 1 xenstore's).

Batched copy (``GNTTABOP_copy``), one 40-byte record per copy, in memory of the caller::

     0            8       10       12    16           24      26       28    32    34      36       40
    +------------+-------+--------+-----+------------+-------+--------+-----+-----+-------+--------+
    | source ref | domid | offset | pad | dest ref   | domid | offset | pad | len | flags | status |  (2 bytes of pad)
    | or gmfn    |       |        |     | or gmfn    |       |        |     |     |       |        |
    +------------+-------+--------+-----+------------+-------+--------+-----+-----+-------+--------+

COPY_SOURCE_GREF and COPY_DEST_GREF say that the side is a reference (u32) into `domid`'s grant table; without it, it
is a frame number (u64) of the caller's own memory and `domid` must be DOMID_SELF (or the caller). Neither side may
cross its page. The hypervisor writes `status`.

The active table is ours, not an ABI: one u64 per reference, in memory of the hypervisor, written only by its code::

     0               16        32        48      64
    +---------------+---------+---------+-------+
    | mapper domid+1| readers | writers | lock  |
    +---------------+---------+---------+-------+
"""

import numpy as np

PAGE_BYTES = 4096
PAGE_SHIFT = 12

DOMID_SELF = 0x7FF0

# --- entries ---------------------------------------------------------------------------------------------------------

ENTRY_BYTES = 8
ENTRY_FLAGS = 0
ENTRY_DOMID = 2
ENTRY_FRAME = 4

GRANT_ENTRY = np.dtype([("flags", "<u2"), ("domid", "<u2"), ("frame", "<u4")])

NR_RESERVED_ENTRIES = 8
RESERVED_CONSOLE = 0
RESERVED_XENSTORE = 1

GTF_INVALID = 0
GTF_PERMIT_ACCESS = 1
GTF_ACCEPT_TRANSFER = 2
GTF_TRANSITIVE = 3
GTF_TYPE_MASK = 3
GTF_READONLY = 4
GTF_READING = 8
GTF_WRITING = 16
GTF_SUB_PAGE = 256

# --- operations ------------------------------------------------------------------------------------------------------

OP_MAP_GRANT_REF = 0
OP_UNMAP_GRANT_REF = 1
OP_SETUP_TABLE = 2
OP_TRANSFER = 4
OP_COPY = 5
OP_QUERY_SIZE = 6

GNTST_OKAY = 0
GNTST_GENERAL_ERROR = -1
GNTST_BAD_DOMAIN = -2
GNTST_BAD_GNTREF = -3
GNTST_BAD_HANDLE = -4
GNTST_BAD_VIRT_ADDR = -5
GNTST_BAD_DEV_ADDR = -6
GNTST_NO_DEVICE_SPACE = -7
GNTST_PERMISSION_DENIED = -8
GNTST_BAD_PAGE = -9
GNTST_BAD_COPY_ARG = -10
GNTST_ADDRESS_TOO_BIG = -11
GNTST_EAGAIN = -12
GNTST_NO_SPACE = -13

# --- struct gnttab_copy ----------------------------------------------------------------------------------------------

COPY_BYTES = 40
COPY_SOURCE = 0
COPY_SOURCE_DOMID = 8
COPY_SOURCE_OFFSET = 10
COPY_DEST = 16
COPY_DEST_DOMID = 24
COPY_DEST_OFFSET = 26
COPY_LEN = 32
COPY_FLAGS = 34
COPY_STATUS = 36

COPY_SOURCE_GREF = 1
COPY_DEST_GREF = 2

GNTTAB_COPY = np.dtype(
    {
        "names": [
            "source", "source_domid", "source_offset", "dest", "dest_domid", "dest_offset", "len", "flags", "status",
        ],
        "formats": ["<u8", "<u2", "<u2", "<u8", "<u2", "<u2", "<u2", "<u2", "<i2"],
        "offsets": [0, 8, 10, 16, 24, 26, 32, 34, 36],
        "itemsize": 40,
    }
)  # fmt: skip

# --- the active table ------------------------------------------------------------------------------------------------

ACTIVE_MAPPER_MASK = 0xFFFF
ACTIVE_READER = 1 << 16  # one reader
ACTIVE_WRITER = 1 << 32  # one writer
ACTIVE_COUNT_MASK = 0xFFFF
ACTIVE_LOCK = 1 << 48  # somebody is changing the word, or copying
