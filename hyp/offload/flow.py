"""The flow hash: which of several queues a frame goes to. Whoever sends to a receiver with several of them chooses by it.

Frames of one flow have one hash, and so one queue, in which they stay in order. It is the same for both directions (symmetric), so
that an answer comes to the queue that the question left from. What is hashed:

==========================================  ====================================================================================
TCP and UDP over IPv4, over IPv6            both addresses with their ports, and the protocol
other packets of IP, and fragments          both addresses, and the protocol (of an IPv6 packet: the first header after the fixed)
test frames of the lab                      both Ethernet addresses, and the stream (hyp/load/frames.py)
everything else, frames with a tag too      both Ethernet addresses, and the EtherType
==========================================  ====================================================================================

Headers are looked for in the frame's first fragment only: where it does not have them whole, the last row is what counts. An IPv6
packet with extension headers counts as one without ports. What is read decides on a queue and on nothing else, so that memory which
somebody may change meanwhile does no harm.
"""

from typing import Any

from hyp.abi.frame import ETHERTYPE_WIRE
from hyp.atomics import load8, load16, load32, load64
from hyp.frames import destination_of, source_of
from hyp.kernels import compiled, outlined
from hyp.offload.checksum import swap16
from hyp.offload.headers import IPV4, IPV6, TCP, UDP

IP = 14
FRAGMENT_BITS = 0xFF3F  # more fragments, and the offset, as a little-endian load sees them

MULTIPLIER = 0x2545F4914F6CDD1D
MIXER = 0x1E3779B97F4A7C15


@compiled
def _mix(word: int) -> Any:
    """A word whose bits all depend on all of `word`'s."""
    word = (word ^ ((word >> 32) & 0xFFFF_FFFF)) * MULTIPLIER
    return (word ^ ((word >> 29) & 0x7_FFFF_FFFF)) * MIXER


@compiled
def _hash_of(one: int, other: int, common: int) -> Any:
    """The hash of two ends, whichever is the sender, and of what they have in common: 31 bits."""
    return (_mix(_mix(one) + _mix(other) + common) >> 32) & 0x7FFF_FFFF


@compiled
def _has_ports(protocol: int) -> bool:
    return protocol in (TCP, UDP)


@compiled
def _ipv4_hash(addr: int, length: int) -> Any:
    protocol, at = load8(addr + IP + 9), IP + 4 * (load8(addr + IP) & 15)
    source, destination = load32(addr + IP + 12), load32(addr + IP + 16)
    if _has_ports(protocol) and load16(addr + IP + 6) & FRAGMENT_BITS == 0 and at + 4 <= length:
        source |= load16(addr + at) << 32
        destination |= load16(addr + at + 2) << 32
    return _hash_of(source, destination, protocol)


@compiled
def _ipv6_hash(addr: int, length: int) -> Any:
    protocol, at = load8(addr + IP + 6), IP + 40
    source = _mix(load64(addr + IP + 8)) ^ load64(addr + IP + 16)
    destination = _mix(load64(addr + IP + 24)) ^ load64(addr + IP + 32)
    if _has_ports(protocol) and at + 4 <= length:
        source += load16(addr + at) << 16
        destination += load16(addr + at + 2) << 16
    return _hash_of(source, destination, protocol)


@outlined
def flow_hash(head0: int, head1: int, addr: int, length: int) -> Any:
    """The hash of a frame: 31 bits.

    `head0`, `head1`: its first 16 bytes (hyp/frames.py); `addr`, `length`: its first fragment, of which no byte more is read.
    """
    kind = (head1 >> 32) & 0xFFFF
    if swap16(kind) == IPV4 and length >= IP + 20:
        return _ipv4_hash(addr, length)
    if swap16(kind) == IPV6 and length >= IP + 40:
        return _ipv6_hash(addr, length)
    if kind == ETHERTYPE_WIRE and length >= 16:
        kind |= ((head1 >> 48) & 0xFFFF) << 16
    return _hash_of(destination_of(head0), source_of(head0, head1), kind)


@compiled
def queue_of(head0: int, head1: int, addr: int, length: int, queues: int) -> Any:
    """The queue, of so many, that a frame goes to: as `flow_hash`."""
    return flow_hash(head0, head1, addr, length) % queues
