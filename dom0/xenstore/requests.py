"""What each request does, and its reply's payload (hyp/abi/xs_wire.py). Introductions and releases are the server's."""

from collections.abc import Callable, Sequence
from typing import Protocol

from dom0.xenstore.store import Session
from dom0.xenstore.tree import StoreError, domain_path
from hyp.abi import xs_wire
from hyp.abi.xs_wire import Message, MessageType, WireError

_OK = b"OK\0"


class Toolstack(Protocol):
    """What only Domain 0 may ask for."""

    def introduce(self, domid: int) -> None: ...

    def release(self, domid: int) -> None: ...


def answer(session: Session, message: Message, toolstack: Toolstack) -> bytes:
    """The reply to one request, packed."""
    request = _REQUESTS.get(message.type)
    try:
        if message.type in _FOR_DOM0 and session.domid != 0:  # before anything else: whatever it says
            raise StoreError("EACCES", domain_path(session.domid), "for Domain 0")
        if request is not None:
            payload = request(session, message)
        elif message.type in _TOOLSTACK:
            payload = _TOOLSTACK[message.type](toolstack, message)
        else:
            raise StoreError("ENOSYS", f"request {message.type}")
        type_ = message.type
    except StoreError as error:
        type_, payload = MessageType.ERROR, error.name.encode() + b"\0"
    except WireError:
        type_, payload = MessageType.ERROR, b"EINVAL\0"
    if len(payload) > xs_wire.PAYLOAD_MAX:
        type_, payload = MessageType.ERROR, b"E2BIG\0"
    return xs_wire.pack(type_, message.req_id, message.tx_id, payload)


def _directory(session: Session, message: Message) -> bytes:
    (path,) = _strings(message, 1)
    listing = _listing(session.directory(path, message.tx_id), 0, xs_wire.PAYLOAD_MAX + 1)
    return listing[:-1] if listing.endswith(b"\0\0") or listing == b"\0" else listing  # more than fits is E2BIG


def _directory_part(session: Session, message: Message) -> bytes:
    path, offset = _strings(message, 2)
    node = session.node(path, message.tx_id)
    head = f"{node.generation}\0".encode()
    room = xs_wire.PAYLOAD_MAX - len(head)
    rest = _listing(node.children, xs_wire.parse_number(offset), room)
    if len(rest) > room:
        rest = rest[: rest.rfind(b"\0", 0, room) + 1]
    return head + rest


def _listing(names: Sequence[str], offset: int, room: int) -> bytes:
    """Names, each with a NUL, from byte `offset` on and, after the last, one NUL more; once there are `room` bytes it may end."""
    found, at = bytearray(), 0
    for name in names:
        if at + len(name) >= offset:
            found += f"{name}\0".encode()[max(offset - at, 0) :]
            if len(found) >= room:
                return bytes(found)
        at += len(name) + 1
    return bytes(found) + b"\0"


def _read(session: Session, message: Message) -> bytes:
    (path,) = _strings(message, 1)
    return session.read(path, message.tx_id)


def _write(session: Session, message: Message) -> bytes:
    path, nul, value = message.payload.partition(b"\0")
    if not nul:
        raise WireError("no value")
    session.write(xs_wire.text(path), value, message.tx_id)
    return _OK


def _mkdir(session: Session, message: Message) -> bytes:
    (path,) = _strings(message, 1)
    session.mkdir(path, message.tx_id)
    return _OK


def _rm(session: Session, message: Message) -> bytes:
    (path,) = _strings(message, 1)
    session.rm(path, message.tx_id)
    return _OK


def _get_perms(session: Session, message: Message) -> bytes:
    (path,) = _strings(message, 1)
    return xs_wire.join(str(permission) for permission in session.get_perms(path, message.tx_id))


def _set_perms(session: Session, message: Message) -> bytes:
    path, *permissions = _strings(message, 2, at_least=True)
    session.set_perms(path, [xs_wire.parse_permission(p) for p in permissions], message.tx_id)
    return _OK


def _watch(session: Session, message: Message) -> bytes:
    path, token, *_ = _strings(message, 2, at_least=True)
    session.watch(path, token)
    return _OK


def _unwatch(session: Session, message: Message) -> bytes:
    path, token, *_ = _strings(message, 2, at_least=True)
    session.unwatch(path, token)
    return _OK


def _reset_watches(session: Session, message: Message) -> bytes:
    session.reset()
    return _OK


def _transaction_start(session: Session, message: Message) -> bytes:
    if message.tx_id:
        raise StoreError("EBUSY", domain_path(session.domid), "transactions do not nest")
    return f"{session.transaction_start()}\0".encode()


def _transaction_end(session: Session, message: Message) -> bytes:
    (outcome,) = _strings(message, 1)
    if outcome not in ("T", "F"):
        raise WireError(f"transaction ends in {outcome[:16]!r}")
    session.transaction_end(message.tx_id, outcome == "T")
    return _OK


def _introduce(toolstack: Toolstack, message: Message) -> bytes:
    # The ring's frame and event channel that follow the domain id are not used: a domain has a socket instead.
    domid, *_ = _strings(message, 3, at_least=True)
    toolstack.introduce(xs_wire.parse_domid(domid))
    return _OK


def _release(toolstack: Toolstack, message: Message) -> bytes:
    (domid,) = _strings(message, 1)
    toolstack.release(xs_wire.parse_domid(domid))
    return _OK


def _resume(session: Session, message: Message) -> bytes:
    (domid,) = _strings(message, 1)
    if not session.store.is_introduced(xs_wire.parse_domid(domid)):
        raise StoreError("ENOENT", domain_path(int(domid)))
    return _OK


def _get_domain_path(session: Session, message: Message) -> bytes:
    (domid,) = _strings(message, 1)
    return xs_wire.join([domain_path(xs_wire.parse_domid(domid))])


def _is_domain_introduced(session: Session, message: Message) -> bytes:
    (domid,) = _strings(message, 1)
    return b"T\0" if session.store.is_introduced(xs_wire.parse_domid(domid)) else b"F\0"


def _control(session: Session, message: Message) -> bytes:
    raise StoreError("EINVAL", "control", "no commands")


_REQUESTS: dict[int, Callable[[Session, Message], bytes]] = {
    MessageType.CONTROL: _control,
    MessageType.DIRECTORY: _directory,
    MessageType.DIRECTORY_PART: _directory_part,
    MessageType.READ: _read,
    MessageType.WRITE: _write,
    MessageType.MKDIR: _mkdir,
    MessageType.RM: _rm,
    MessageType.GET_PERMS: _get_perms,
    MessageType.SET_PERMS: _set_perms,
    MessageType.WATCH: _watch,
    MessageType.UNWATCH: _unwatch,
    MessageType.RESET_WATCHES: _reset_watches,
    MessageType.TRANSACTION_START: _transaction_start,
    MessageType.TRANSACTION_END: _transaction_end,
    MessageType.RESUME: _resume,
    MessageType.GET_DOMAIN_PATH: _get_domain_path,
    MessageType.IS_DOMAIN_INTRODUCED: _is_domain_introduced,
}
_TOOLSTACK: dict[int, Callable[[Toolstack, Message], bytes]] = {
    MessageType.INTRODUCE: _introduce,
    MessageType.RELEASE: _release,
}


_FOR_DOM0 = frozenset({MessageType.CONTROL, MessageType.INTRODUCE, MessageType.RELEASE, MessageType.RESUME, MessageType.SET_TARGET})


def _strings(message: Message, count: int, *, at_least: bool = False) -> Sequence[str]:
    """The strings of a request. Raises WireError unless there are `count` of them (or more, with `at_least`)."""
    payload = message.payload
    if message.type == MessageType.DIRECTORY_PART and not payload.endswith(b"\0"):
        payload += b"\0"  # xenstore.txt has the offset end with the message
    strings = xs_wire.split(payload)
    if len(strings) < count or (len(strings) > count and not at_least):
        raise WireError(f"{len(strings)} strings where {count} are due")
    return strings
