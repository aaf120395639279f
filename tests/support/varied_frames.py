"""Frames of every kind from one addressed guest to another, by raw sockets: a program for `Lab.run`, with Python alone.

``python varied_frames.py send|receive OWN_MAC PEER_MAC SEED COUNT``. Both know which frames there are. The sender says hello until
the receiver answers, then sends them CHUNK at a time, waiting for an answer each time; the receiver prints how many came as they
were sent, in order, and says what is wrong with the first that did not.
"""

import random
import socket
import struct
import sys
import time

HELLO, ANSWER, CHUNK, LIMIT_S = 0x88B6, 0x88B7, 40, 60.0  # EtherTypes for local experiments
SOL_PACKET, PACKET_AUXDATA, VLAN_VALID = 263, 8, 0x10
MAGIC = b"\xc5\x3a"


def frames(destination: bytes, source: bytes, seed: int, count: int) -> "list[bytes]":
    """Of any EtherType, with one tag, two or none, odd lengths, IPv4 fragments, IPv6 with extensions. They end with numbers."""
    rng, found = random.Random(seed), []
    for number in range(count):
        tags = rng.choice(
            [b"", b"", struct.pack("!HH", 0x8100, rng.randrange(1, 4095)), struct.pack("!HHHH", 0x88A8, 7, 0x8100, 9)]
        )
        body = rng.randbytes(rng.choice([18, 19, 46, 47, 99, rng.randrange(18, 1480), 1514]))
        kind = rng.choice(["any", "any", "ipv4", "fragment", "ipv6", "llc"])
        if kind == "ipv4":
            head = struct.pack("!HBBHHHBBHII", 0x0800, 0x45, 0, 20 + len(body), number, 0x4000, 64, 253, 0, 0, 0xC6120001)
        elif kind == "fragment":
            head = struct.pack("!HBBHHHBBHII", 0x0800, 0x45, 0, 20 + len(body), number, 0x2000 | rng.randrange(99), 64, 17, 0, 0, 1)
        elif kind == "ipv6":
            head = struct.pack("!HIHBB", 0x86DD, 6 << 28, 8 + len(body), 60, 64) + bytes(32) + bytes((59, 0, 1, 4, 0, 0, 0, 0))
        elif kind == "llc":
            head = struct.pack("!HBBB", min(len(body), 1400), 0xAA, 0xAA, 3)
        else:
            head = struct.pack("!H", rng.choice([0x0842, 0x6003, 0x8847, 0x8863, 0x88CC, 0x893A, 0x9000, 0x22F3, 0x0700]))
        room = 1514 + (4 if len(tags) == 4 else 0) - 12 - len(tags) - len(head) - 6
        found.append(destination + source + tags + head + body[:room] + MAGIC + struct.pack("!I", number))
    return found


def raw_socket() -> socket.socket:
    """All that comes and goes at eth0."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    found.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    found.bind(("eth0", 0))
    found.settimeout(0.05)
    return found


def receive(sock: socket.socket) -> bytes:
    """The next frame as it was on the wire: the kernel takes an outer tag out, and says so; b"" if none comes for a while."""
    try:
        frame, extra, _, _ = sock.recvmsg(65536, 256)
    except TimeoutError:
        return b""
    for level, kind, data in extra:
        if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
            status, *_, tag, protocol = struct.unpack("IIIHHHH", data[:20])
            if status & VLAN_VALID:
                frame = frame[:12] + struct.pack("!HH", protocol or 0x8100, tag) + frame[12:]
    return frame


def is_from(frame: bytes, peer: bytes, kind: int) -> bool:
    return frame[6:12] == peer and frame[12:14] == struct.pack("!H", kind)


def send_all(sock: socket.socket, own: bytes, peer: bytes, wanted: "list[bytes]") -> None:
    """The sending side."""
    deadline = time.monotonic() + LIMIT_S

    def answered(done: int) -> bool:
        frame = receive(sock)
        return is_from(frame, peer, ANSWER) and struct.unpack("!I", frame[14:18])[0] == done

    done = 0
    while done < len(wanted) or done == 0:
        sock.send(peer + own + struct.pack("!HI", HELLO, done) + bytes(42))
        if answered(done):
            break
        assert time.monotonic() < deadline, "nobody answers"
    while done < len(wanted):
        for frame in wanted[done : done + CHUNK]:
            sock.send(frame)
        done = min(done + CHUNK, len(wanted))
        while not answered(done):
            assert time.monotonic() < deadline, f"no answer after {done} frames"
    print("sent", done)


def receive_all(sock: socket.socket, own: bytes, peer: bytes, wanted: "list[bytes]") -> None:
    """The receiving side."""
    deadline, done = time.monotonic() + LIMIT_S, 0
    while done < len(wanted):
        frame = receive(sock)
        assert time.monotonic() < deadline, f"{done} frames have come"
        if frame[:6] != own or frame[6:12] != peer:
            continue
        if is_from(frame, peer, HELLO):
            sock.send(peer + own + struct.pack("!HI", ANSWER, done) + bytes(42))
        elif frame[-6:-4] == MAGIC:
            assert frame == wanted[done], f"frame {done}: {frame.hex()} came, {wanted[done].hex()} was sent"
            done += 1
            if done % CHUNK == 0 or done == len(wanted):
                sock.send(peer + own + struct.pack("!HI", ANSWER, done) + bytes(42))
    print("received", done)


if __name__ == "__main__":
    side, own_mac, peer_mac = sys.argv[1], *(bytes.fromhex(mac.replace(":", "")) for mac in sys.argv[2:4])
    ends = (peer_mac, own_mac) if side == "send" else (own_mac, peer_mac)
    there = frames(*ends, int(sys.argv[4]), int(sys.argv[5]))
    (send_all if side == "send" else receive_all)(raw_socket(), own_mac, peer_mac, there)
