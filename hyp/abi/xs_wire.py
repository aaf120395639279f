"""xenstore wire protocol: what travels between a domain and xenstored.

Source: Xen's ``xen/include/public/io/xs_wire.h`` and ``docs/misc/xenstore.txt``. Both directions carry messages::

     0        4        8        12       16              16 + len
    +--------+--------+--------+--------+-----------------+
    | type   | req_id | tx_id  | len    | payload         |    four u32, little-endian (the host's order on x86)
    +--------+--------+--------+--------+-----------------+

    type     request, or WATCH_EVENT, or ERROR; a reply has its request's type, or ERROR
    req_id   chosen by the client, echoed by the reply; 0 in a WATCH_EVENT
    tx_id    0, or the transaction the request belongs to; echoed
    len      bytes of payload, at most PAYLOAD_MAX

NOTE len: a message that claims more cannot be skipped safely, so it ends the connection. Everything else that is wrong
in a request is answered by ERROR.

Payloads (``|`` is a NUL byte, ``*`` any number of, ``<>`` a string without NUL; ``<value>`` may be any bytes):

====================  ==========================  ===============================================
request               its payload                 its reply's payload (otherwise ``OK|``)
====================  ==========================  ===============================================
DIRECTORY             <path>|                     (<child>|)*
DIRECTORY_PART        <path>|<offset>|            <generation>|(<child>|)* and, after the last, |
READ                  <path>|                     <value>
WRITE                 <path>|<value>
MKDIR, RM             <path>|
GET_PERMS             <path>|                     (<perm>|)+
SET_PERMS             <path>|(<perm>|)+
WATCH, UNWATCH        <wpath>|<token>|
RESET_WATCHES         |
TRANSACTION_START     |                           <tx_id>|
TRANSACTION_END       T| or F|
INTRODUCE             <domid>|<mfn>|<evtchn>|
RELEASE, RESUME       <domid>|
GET_DOMAIN_PATH       <domid>|                    <path>|
IS_DOMAIN_INTRODUCED  <domid>|                    T| or F|
(WATCH_EVENT)                                     <epath>|<token>|
(ERROR)                                           <error name>|
====================  ==========================  ===============================================

A ``<perm>`` is a letter and a domain id: ``n`` no access, ``r`` read, ``w`` write, ``b`` both. The first names the
node's owner, who may do everything, and what all domains not listed may do; the others are one domain each.
"""

import re
import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum, IntFlag
from typing import NamedTuple

HEADER = struct.Struct("<IIII")
PAYLOAD_MAX = 4096
ABS_PATH_MAX = 3072
REL_PATH_MAX = 2048
DOMID_MAX = 0x7FEF  # DOMID_FIRST_RESERVED - 1 (xen.h): beyond it are names such as DOMID_SELF, not domains

INTRODUCE_SPECIAL = "@introduceDomain"
RELEASE_SPECIAL = "@releaseDomain"

# Every name xs_wire.h lists: a client's library maps any other to EINVAL.
ERROR_NAMES = frozenset(
    {
        "EINVAL",
        "EACCES",
        "EEXIST",
        "EISDIR",
        "ENOENT",
        "ENOMEM",
        "ENOSPC",
        "EIO",
        "ENOTEMPTY",
        "ENOSYS",
        "EROFS",
        "EBUSY",
        "EAGAIN",
        "EISCONN",
        "E2BIG",
        "EPERM",
    }
)


class MessageType(IntEnum):
    """enum xsd_sockmsg_type. 20, XS_RESTRICT, has been removed from Xen."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22


class WireError(ValueError):
    """The peer's bytes are not a xenstore message, or ours would not be one."""


class Message(NamedTuple):
    """One message; ``type`` is a plain int because a peer may send any."""

    type: int
    req_id: int
    tx_id: int
    payload: bytes


def pack(type_: int, req_id: int, tx_id: int, payload: bytes) -> bytes:
    """Header and payload as bytes. Raises WireError if the payload is too long or a field is not a u32."""
    if len(payload) > PAYLOAD_MAX:
        raise WireError(f"payload of {len(payload)} bytes, at most {PAYLOAD_MAX} fit a message")
    try:
        return HEADER.pack(type_, req_id, tx_id, len(payload)) + payload
    except struct.error as error:
        raise WireError(f"type {type_}, req_id {req_id}, tx_id {tx_id}: {error}") from None


class Decoder:
    """Cuts a byte stream into messages. Holds at most one incomplete message beyond what it was fed last."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield each message that `data` completes. Raises WireError at the first impossible length."""
        self.add(data)
        while (message := self.take()) is not None:
            yield message

    def add(self, data: bytes) -> None:
        """More of the stream."""
        self._buffer += data

    def take(self) -> Message | None:
        """The next message that is complete. Raises WireError if its length is impossible."""
        if len(self._buffer) < HEADER.size:
            return None
        type_, req_id, tx_id, length = HEADER.unpack_from(self._buffer)
        if length > PAYLOAD_MAX:
            raise WireError(f"message of type {type_} claims {length} bytes of payload, more than {PAYLOAD_MAX}")
        end = HEADER.size + length
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[HEADER.size : end])
        del self._buffer[:end]
        return Message(type_, req_id, tx_id, payload)

    @property
    def partial(self) -> int:
        """Bytes held of a message that is not complete yet."""
        return len(self._buffer)


def text(data: bytes) -> str:
    """Peer's bytes as a string: never raises, and `encode` gives the same bytes back."""
    return data.decode("utf-8", "surrogateescape")


def encode(string: str) -> bytes:
    """The inverse of `text`. Raises WireError if the string holds what no `text` returns (a lone surrogate)."""
    try:
        return string.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise WireError(f"{string!r} cannot be sent: {error.reason}") from None


def join(strings: Iterable[str]) -> bytes:
    """NUL-terminated strings, one after another. Raises WireError if one contains a NUL."""
    parts = [encode(string) for string in strings]
    for part in parts:
        if b"\0" in part:
            raise WireError(f"{part!r} contains a NUL byte")
    return b"".join(part + b"\0" for part in parts)


def split(payload: bytes) -> list[str]:
    """The NUL-terminated strings a payload consists of. Raises WireError if bytes follow the last NUL."""
    *parts, rest = payload.split(b"\0")
    if rest:
        raise WireError(f"payload ends in {rest[:16]!r}, not in a NUL byte")
    return [text(part) for part in parts]


class Access(IntFlag):
    """What a permission allows (enum xs_perm_type)."""

    NONE = 0
    READ = 1
    WRITE = 2
    BOTH = 3


_LETTERS = {"n": Access.NONE, "r": Access.READ, "w": Access.WRITE, "b": Access.BOTH}
_NAMES = {access: letter for letter, access in _LETTERS.items()}
_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)


class Permission(NamedTuple):
    """One entry of a node's permissions, written ``r5`` on the wire."""

    domid: int
    access: Access

    def __str__(self) -> str:
        return f"{_NAMES[self.access]}{self.domid}"


def parse_number(string: str, limit: int = 0xFFFF_FFFF) -> int:
    """A plain decimal number of at most `limit`. Raises WireError for anything else (signs, blanks, other digits)."""
    if not _NUMBER.fullmatch(string) or int(string) > limit:
        raise WireError(f"{string[:32]!r} is not a number of at most {limit}")
    return int(string)


def parse_domid(string: str) -> int:
    """A domain id. Raises WireError if it is not one a domain can have."""
    return parse_number(string, DOMID_MAX)


def parse_permission(string: str) -> Permission:
    """``r5`` as a `Permission`. Raises WireError if it is not one."""
    if string[:1] not in _LETTERS or not string:
        raise WireError(f"{string[:32]!r} is not a permission")
    return Permission(parse_domid(string[1:]), _LETTERS[string[0]])
