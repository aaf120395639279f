"""Hash control of a vif (Xen's io/netif.h): how its front end has what it receives spread over its queues. Control plane.

Each request changes what is wished for here; what follows from it is made anew as a HASHING record (hyp/offload/toeplitz.py), and
the engine takes that up between two batches, before the request is answered. With no algorithm, or no type of hash, the engine
chooses by its own flow hash, as for a front end without a control ring. A vif begins so, with an empty key and no mapping.

=====================  =========================================================================================================
SET_HASH_ALGORITHM     NONE or TOEPLITZ; INVALID_PARAMETER for others
GET_HASH_FLAGS         the four types; NOT_SUPPORTED while there is no algorithm
SET_HASH_FLAGS         INVALID_PARAMETER for a type that is none, or while there is no algorithm
SET_HASH_KEY           BUFFER_OVERFLOW: more than KEY_BYTES; INVALID_PARAMETER: not granted. 0 bytes clear it, without a grant
GET_HASH_MAPPING_SIZE  MOST_ENTRIES
SET_HASH_MAPPING_SIZE  INVALID_PARAMETER for more. All entries are 0 then
SET_HASH_MAPPING       all of a sub-table is entered, or nothing. BUFFER_OVERFLOW: more than MOST_ENTRIES. INVALID_PARAMETER: not
                       within the size that was set, not granted, or one of them is no queue
=====================  =========================================================================================================

Limits and answers are those of Linux's xen-netback (hash.c), but for BUFFER_OVERFLOW, where it says INVALID_PARAMETER. A key or a
table is in the guest's memory and may change at any time: it is copied once, and then judged.
"""

from typing import Any, Final

import numpy as np

from dom0.build import EngineState
from dom0.control.pages import Grants, fetch, mapped
from hyp.abi.netif import (
    CTRL_HASH_ALGORITHM_NONE,
    CTRL_HASH_ALGORITHM_TOEPLITZ,
    CTRL_HASH_TYPE_IPV4,
    CTRL_HASH_TYPE_IPV4_TCP,
    CTRL_HASH_TYPE_IPV6,
    CTRL_HASH_TYPE_IPV6_TCP,
    CTRL_STATUS_BUFFER_OVERFLOW,
    CTRL_STATUS_INVALID_PARAMETER,
    CTRL_STATUS_NOT_SUPPORTED,
    CTRL_STATUS_SUCCESS,
    CTRL_TYPE_GET_HASH_FLAGS,
    CTRL_TYPE_GET_HASH_MAPPING_SIZE,
    CTRL_TYPE_SET_HASH_ALGORITHM,
    CTRL_TYPE_SET_HASH_FLAGS,
    CTRL_TYPE_SET_HASH_KEY,
    CTRL_TYPE_SET_HASH_MAPPING_SIZE,
)
from hyp.offload.toeplitz import HASHING, KEY_BYTES, key_table

MOST_ENTRIES: Final = 128
"""Of a mapping (Linux's XEN_NETBK_MAX_HASH_MAPPING_SIZE)."""
TYPES: Final = CTRL_HASH_TYPE_IPV4 | CTRL_HASH_TYPE_IPV4_TCP | CTRL_HASH_TYPE_IPV6 | CTRL_HASH_TYPE_IPV6_TCP
Table = np.ndarray[tuple[int], np.dtype[np.uint32]]


class _Hashing:
    """A HASHING record and what it points at."""

    def __init__(self, types: int, key: bytes, mapping: Table) -> None:
        self._key, self._mapping = key_table(key), mapping.copy()
        self._record = np.zeros(1, HASHING)
        row = self._record[0]
        row["types"], row["size"] = types, len(mapping)
        row["key"], row["mapping"] = self._key.ctypes.data, self._mapping.ctypes.data
        self.address = int(self._record.ctypes.data)


class HashControl:
    """One vif's: requests of these `KINDS`, one after the other."""

    KINDS: Final = frozenset(range(CTRL_TYPE_GET_HASH_FLAGS, CTRL_TYPE_SET_HASH_ALGORITHM + 1))

    def __init__(self, state: EngineState, number: int, grants: Grants, queues: int) -> None:
        """Of the vif whose first port is `number`, which has so many queues. `grants`: of `map_page`."""
        self._state, self._number, self._grants, self._queues = state, number, grants, queues
        self._algorithm, self._types, self._key = CTRL_HASH_ALGORITHM_NONE, 0, b""
        self._mapping: Table = np.zeros(0, np.uint32)
        self._in_use: list[_Hashing] = []  # what the engine looks at, and before it is told of another that, too

    async def carry_out(self, kind: int, one: int, two: int, three: int) -> tuple[int, int]:
        """(status, data) of a request with these data."""
        if kind == CTRL_TYPE_GET_HASH_MAPPING_SIZE:
            return CTRL_STATUS_SUCCESS, MOST_ENTRIES
        if kind == CTRL_TYPE_GET_HASH_FLAGS:
            known = self._algorithm != CTRL_HASH_ALGORITHM_NONE
            return (CTRL_STATUS_SUCCESS, TYPES) if known else (CTRL_STATUS_NOT_SUPPORTED, 0)
        status = self._change(kind, one, two, three)
        if status == CTRL_STATUS_SUCCESS:
            await self._apply()
        return status, 0

    def _change(self, kind: int, one: int, two: int, three: int) -> int:
        if kind == CTRL_TYPE_SET_HASH_ALGORITHM:
            return self._set_algorithm(one)
        if kind == CTRL_TYPE_SET_HASH_FLAGS:
            return self._set_types(one)
        if kind == CTRL_TYPE_SET_HASH_KEY:
            return self._set_key(one, two)
        if kind == CTRL_TYPE_SET_HASH_MAPPING_SIZE:
            return self._set_mapping_size(one)
        return self._set_mapping(one, two, three)

    def _set_algorithm(self, algorithm: int) -> int:
        if algorithm not in (CTRL_HASH_ALGORITHM_NONE, CTRL_HASH_ALGORITHM_TOEPLITZ):
            return CTRL_STATUS_INVALID_PARAMETER
        self._algorithm = algorithm
        return CTRL_STATUS_SUCCESS

    def _set_types(self, types: int) -> int:
        if types & ~TYPES or self._algorithm == CTRL_HASH_ALGORITHM_NONE:
            return CTRL_STATUS_INVALID_PARAMETER
        self._types = types
        return CTRL_STATUS_SUCCESS

    def _set_key(self, gref: int, octets: int) -> int:
        if octets > KEY_BYTES:
            return CTRL_STATUS_BUFFER_OVERFLOW
        key = np.zeros(octets, np.uint8)
        if not self._fetched(key, gref):
            return CTRL_STATUS_INVALID_PARAMETER
        self._key = key.tobytes()
        return CTRL_STATUS_SUCCESS

    def _set_mapping_size(self, size: int) -> int:
        if size > MOST_ENTRIES:
            return CTRL_STATUS_INVALID_PARAMETER
        self._mapping = np.zeros(size, np.uint32)
        return CTRL_STATUS_SUCCESS

    def _set_mapping(self, gref: int, count: int, first: int) -> int:
        if count > MOST_ENTRIES:
            return CTRL_STATUS_BUFFER_OVERFLOW
        if first + count > len(self._mapping):
            return CTRL_STATUS_INVALID_PARAMETER
        table = np.zeros(count, np.uint32)
        if not self._fetched(table, gref):
            return CTRL_STATUS_INVALID_PARAMETER
        if (table >= self._queues).any():
            return CTRL_STATUS_INVALID_PARAMETER
        self._mapping[first : first + count] = table
        return CTRL_STATUS_SUCCESS

    def _fetched(self, array: "np.ndarray[tuple[int], np.dtype[Any]]", gref: int) -> bool:
        """Fill `array` from a granted page; nothing needs no grant. False: not granted."""
        if not array.size:
            return True
        with mapped(self._grants, gref, 0) as page:
            if page >= 0:
                fetch(array, page)
            return page >= 0

    async def _apply(self) -> None:
        """Let the engine choose queues by what is wished for now."""
        if self._algorithm != CTRL_HASH_ALGORITHM_NONE and self._types != 0:
            self._in_use.append(_Hashing(self._types, self._key, self._mapping))
            await self._state.set_hashing(self._number, self._in_use[-1].address)
            del self._in_use[:-1]
        else:
            await self._state.set_hashing(self._number, 0)
            self._in_use.clear()
