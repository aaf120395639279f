"""The guests' network namespaces: real ones, each in a forked child, with privilege and without."""

import fcntl
import ipaddress
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from domu import netns
from hyp.abi.features import CSUM, NONE, SG, TSO4
from hyp.abi.vnet import VNET_BYTES
from hyp.net import netlink
from hyp.net.steps import SetupError
from hyp.net.tap import set_offloads
from tests.support.children import become_nobody, call, in_child, libc, read_only_sysctls, root_of_nothing, tun_device

MAC, ADDRESS, MTU = "02:00:00:00:00:0a", netns.Addresses("10.1.2.3/20"), 1400
MAC_BYTES, PEER_MAC = bytes.fromhex("02000000000a"), bytes.fromhex("0200000000fe")
HOST, PEER = "10.1.2.3", "10.1.2.9"
needs_root = pytest.mark.needs("root")


@pytest.fixture(params=[pytest.param("root", marks=needs_root), pytest.param("nobody", marks=pytest.mark.needs("taps"))])
def inside(request: pytest.FixtureRequest) -> Callable[[Callable[[netns.Tap], Any]], Any]:
    """Runs a function of a fresh `Tap` in a child that created it: as root, and as a user without privilege."""
    root = os.geteuid() == 0

    def run(body: Callable[[netns.Tap], Any]) -> Any:
        def child() -> Any:
            if request.param == "nobody" and root:
                tun_device(0o666)
                become_nobody()
            return body(netns.create(MAC, ADDRESS, MTU))

        return in_child(child)

    return run


# --- frames ----------------------------------------------------------------------------------------------------------


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def udp_checksum(source: bytes, destination: bytes, segment: bytes) -> int:
    return checksum(source + destination + struct.pack("!BBH", 0, 17, len(segment)) + segment)


def udp_frame(payload: bytes, port: int) -> bytes:
    """A UDP datagram from PEER to HOST as an Ethernet frame."""
    source, destination = socket.inet_aton(PEER), socket.inet_aton(HOST)
    segment = struct.pack("!HHHH", 4000, port, 8 + len(payload), 0) + payload
    segment = segment[:6] + struct.pack("!H", udp_checksum(source, destination, segment)) + segment[8:]
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(segment), 1, 0, 64, 17, 0, source, destination)
    header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    return MAC_BYTES + PEER_MAC + b"\x08\x00" + header + segment


def arp_reply() -> bytes:
    """PEER's answer to HOST."""
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2)
    body += PEER_MAC + socket.inet_aton(PEER) + MAC_BYTES + socket.inet_aton(HOST)
    return MAC_BYTES + PEER_MAC + b"\x08\x06" + body


def next_frame(fd: int) -> bytes:
    """The next frame out of the TAP, which asks for nothing. (The child's alarm bounds the wait.)"""
    header, frame = next_with_header(fd)
    assert header == bytes(VNET_BYTES), header.hex()
    return frame


def next_with_header(fd: int) -> tuple[bytes, bytes]:
    """The next frame out of the TAP with its virtio_net_hdr."""
    readable = select.poll()
    readable.register(fd, select.POLLIN)
    readable.poll()
    whole = os.read(fd, 70_000)
    return whole[:VNET_BYTES], whole[VNET_BYTES:]


def write_frame(fd: int, frame: bytes, header: bytes = bytes(VNET_BYTES)) -> None:
    """Hand the kernel a frame."""
    assert os.write(fd, header + frame) == VNET_BYTES + len(frame)


def resolve(tap: netns.Tap) -> None:
    """Answer the ARP request for PEER, which must be the first frame that comes: nothing was sent by itself."""
    request = next_frame(tap.fd)
    assert request[:14] == b"\xff" * 6 + MAC_BYTES + b"\x08\x06", request.hex()
    assert request[38:42] == socket.inet_aton(PEER), request.hex()
    write_frame(tap.fd, arp_reply())


# --- what create makes -----------------------------------------------------------------------------------------------


def test_interface_has_the_settings_asked_for(inside: Callable[..., Any]) -> None:
    def look(tap: netns.Tap) -> list[Any]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:

            def get(request: int, layout: str) -> Any:
                answer = fcntl.ioctl(control, request, struct.pack("16s24x", tap.name.encode()))
                return struct.unpack_from(layout, answer, 16)

            flags, mtu = get(0x8913, "H")[0], get(0x8921, "i")[0]
            mac, address, mask = get(0x8927, "2x6s")[0].hex(), get(0x8915, "4x4s")[0], get(0x891B, "4x4s")[0]
        names = sorted(name for _, name in socket.if_nameindex())
        return [tap.name, names, flags & 1, mtu, mac, socket.inet_ntoa(address), socket.inet_ntoa(mask)]

    assert inside(look) == ["eth0", ["eth0", "lo"], 1, MTU, MAC_BYTES.hex(), HOST, "255.255.240.0"]


def test_the_descriptor_is_nonblocking_and_closed_on_exec(inside: Callable[..., Any]) -> None:
    def look(tap: netns.Tap) -> list[Any]:
        try:
            frame = os.read(tap.fd, 2048).hex()
        except BlockingIOError:
            frame = ""
        return [os.get_blocking(tap.fd), os.get_inheritable(tap.fd), frame]

    assert inside(look) == [False, False, ""]


def test_no_ipv6_but_on_the_loopback(inside: Callable[..., Any]) -> None:
    def look(tap: netns.Tap) -> list[Any]:
        addresses = Path("/proc/net/if_inet6")
        found = [line.split() for line in addresses.read_text().splitlines()] if addresses.exists() else []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo:
            echo.bind(("127.0.0.1", 0))
            echo.sendto(b"to myself", echo.getsockname())
            return [sorted({line[-1] for line in found} - {"lo"}), echo.recv(100).decode()]

    assert inside(look) == [[], "to myself"]


@pytest.mark.needs("ipv6")
def test_an_mtu_that_ipv6_takes_lets_nothing_in() -> None:
    """The kernel forgets what it was told of IPv6 on an interface while its MTU is less than 1280."""

    def body() -> list[Any]:
        tap = netns.create(MAC, ADDRESS, 1000)
        netlink.set_mtu(socket.if_nametoindex(tap.name), 9000)
        found = [line.split()[-1] for line in Path("/proc/net/if_inet6").read_text().splitlines()]
        return [found, Path(f"/proc/sys/net/ipv6/conf/{tap.name}/disable_ipv6").read_text().strip()]

    assert in_child(body) == [["lo"], "1"]


@pytest.mark.needs("ipv6")
def test_ipv6_addresses_are_there_at_once_and_announce_no_more_than_their_groups(inside: Callable[..., Any]) -> None:
    """No duplicate address detection, no router solicitation: all that is sent are MLD reports, and then what a program sends."""

    def look(wanted: netns.Addresses) -> list[Any]:
        tap = netns.create(MAC, wanted, MTU)
        lines = [line.split() for line in Path("/proc/net/if_inet6").read_text().splitlines()]
        found = sorted(
            (name, str(ipaddress.IPv6Address(bytes.fromhex(address))), int(flags, 16) & 0x48)
            for address, _, _, _, flags, name in lines
        )
        client = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        client.sendto(b"hello", ("fd00::2", 9))
        kinds: list[int] = []
        while not kinds or kinds[-1] != 135:  # neighbour solicitation
            frame = next_frame(tap.fd)
            kinds.append(frame[54] if frame[20] == 58 else frame[62])  # MLD is after a hop-by-hop header
        return [found, sorted(set(kinds) - {143}), str(ipaddress.IPv6Address(frame[22:38])), frame[62:78].hex()]

    peer = ipaddress.IPv6Address("fd00::2").packed.hex()
    both = netns.Addresses("10.1.2.3/20", address6="fd00::1/64", link_local=True)
    expected = [["eth0", "fd00::1", 0], ["eth0", "fe80::ff:fe00:a", 0], ["lo", "::1", 0]]
    assert in_child(lambda: look(both)) == [expected, [135], "fd00::1", peer]
    one = netns.Addresses("10.1.2.3/20", address6="fd00::1/64")
    assert in_child(lambda: look(one)) == [[expected[0], expected[2]], [135], "fd00::1", peer]


def test_a_gateway_is_for_all_that_is_not_near(inside: Callable[..., Any]) -> None:
    def body() -> list[str]:
        tap = netns.create(MAC, netns.Addresses("10.1.2.3/20", gateway=PEER), MTU)
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"far", ("192.0.2.1", 9))
        return [next_frame(tap.fd)[38:42].hex()]

    assert in_child(body) == [socket.inet_aton(PEER).hex()]


def test_frame_written_is_received_inside(inside: Callable[..., Any]) -> None:
    payload = bytes(range(256)) * 5

    def body(tap: netns.Tap) -> list[Any]:
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        sniffer.bind((tap.name, 0x0800))
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind((HOST, 7))  # a port that wants privilege: the user is root inside
        frame = udp_frame(payload, 7)
        write_frame(tap.fd, frame)
        received, sender = server.recvfrom(4096)
        return [sniffer.recv(4096) == frame, received == payload, list(sender)]

    assert inside(body) == [True, True, [PEER, 4000]]


def test_datagram_sent_inside_is_read_complete(inside: Callable[..., Any]) -> None:
    def body(tap: netns.Tap) -> list[Any]:
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.sendto(b"ping" * 9, (PEER, 53))
        resolve(tap)
        frame = next_frame(tap.fd)
        ip, segment = frame[14:34], frame[34:]
        verifies = [checksum(ip), udp_checksum(ip[12:16], ip[16:20], segment)]  # 0: the checksum in it is right
        return [frame[:14].hex(), verifies, segment[6:8] != b"\0\0", segment[8:].decode()]

    assert inside(body) == [(PEER_MAC + MAC_BYTES + b"\x08\x00").hex(), [0, 0], True, "ping" * 9]


def connected(tap: netns.Tap) -> socket.socket:
    """A TCP connection from inside to PEER, whose end we are; all that we answer is its SYN."""
    client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    client.setblocking(False)
    assert client.connect_ex((PEER, 80)) == 115  # EINPROGRESS
    resolve(tap)
    _, frame = next_with_header(tap.fd)
    port, number = struct.unpack_from("!H2xI", frame, 34)
    source, destination = socket.inet_aton(PEER), socket.inet_aton(HOST)
    answer = struct.pack("!HHIIBBHHH", 80, port, 1000, number + 1, 0x60, 0x12, 65535, 0, 0)
    answer += struct.pack("!BBH", 2, 4, MTU - 40)  # maximum segment size
    pseudo = source + destination + struct.pack("!BBH", 0, 6, len(answer))
    answer = answer[:16] + struct.pack("!H", checksum(pseudo + answer)) + answer[18:]
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(answer), 2, 0, 64, 6, 0, source, destination)
    header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    write_frame(tap.fd, MAC_BYTES + PEER_MAC + b"\x08\x00" + header + answer)
    writable = select.poll()
    writable.register(client, select.POLLOUT)
    writable.poll()
    return client


def test_without_offloads_segments_are_no_longer_than_the_mtu(inside: Callable[..., Any]) -> None:
    """A large write leaves as segments with complete checksums."""

    def body(tap: netns.Tap) -> list[Any]:
        client = connected(tap)
        client.send(bytes(40_000))
        frames = [next_frame(tap.fd) for _ in range(5)]  # the handshake's end and the first of the data
        pseudos = [frame[26:34] + struct.pack("!BBH", 0, 6, len(frame) - 34) for frame in frames]
        checks = {checksum(pseudo + frame[34:]) for pseudo, frame in zip(pseudos, frames, strict=True)}
        return [max(len(frame) for frame in frames), sorted(checks)]

    assert inside(body) == [MTU + 14, [0]]


@pytest.mark.parametrize(
    ("features", "blank", "whole"),
    [
        (NONE, False, False),
        (SG | CSUM, True, False),
        (SG | CSUM | TSO4, True, True),
        (CSUM | TSO4, True, False),
        (TSO4, False, False),
    ],
)
def test_what_the_device_does_is_left_undone(inside: Callable[..., Any], features: int, blank: bool, whole: bool) -> None:
    """A frame of up to 64 KiB, as long as a device takes; without "sg" no segmentation, without "csum" neither."""

    def body(tap: netns.Tap) -> list[Any]:
        set_offloads(tap.fd, tap.name, features)
        client = connected(tap)
        client.send(bytes(10 * MTU))
        next_with_header(tap.fd)  # the handshake's end
        header, frame = next_with_header(tap.fd)
        flags, kind, _, segment, start, offset = struct.unpack("=BBHHHH", header)
        return [flags, (start, offset) if flags else None, kind, segment if kind else 0, len(frame) > MTU + 14]

    sums, cuts = ([1, [34, 16]] if blank else [0, None]), ([1, MTU - 40, True] if whole else [0, 0, False])
    assert inside(body) == [*sums, *cuts]


def test_nothing_is_left_afterwards(inside: Callable[..., Any]) -> None:
    def state() -> tuple[Any, ...]:
        named = [sorted(os.listdir(folder)) for folder in ("/run/netns", "/var/run/netns") if os.path.isdir(folder)]
        return os.stat("/proc/self/ns/net").st_ino, socket.if_nameindex(), named, sorted(os.listdir("/proc/self/fd"))

    before = state()
    inode = inside(lambda tap: os.stat("/proc/self/ns/net").st_ino)
    assert state() == before
    assert inode != before[0]
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            assert os.stat(link).st_ino != inode, f"{link} is still in the guest's namespace"
        except OSError:  # a process that has just ended
            continue


# --- refusals --------------------------------------------------------------------------------------------------------


def failure(prepare: Callable[[], None], mac: str = MAC, mtu: int = MTU) -> list[str]:
    """The step, cause and remedy of the SetupError in a child, and the descriptors it left open."""

    def body() -> list[Any]:
        prepare()
        before = set(os.listdir("/proc/self/fd"))
        try:
            netns.create(mac, ADDRESS, mtu)
        except SetupError as error:
            left = sorted(set(os.listdir("/proc/self/fd")) - before)
            return [str(error), left, error.step, error.cause, error.remedy]
        raise AssertionError("it was created")

    text, left, *parts = in_child(body)
    assert left == []
    assert all(part in text for part in parts)
    return [str(part) for part in parts]


def test_second_thread_is_refused() -> None:
    def start_thread() -> None:
        threading.Thread(target=threading.Event().wait, daemon=True).start()

    step, cause, remedy = failure(start_thread)
    assert step == "enter a network namespace"
    assert "2 threads" in cause
    assert "OPENBLAS_NUM_THREADS=1" in remedy


@needs_root
def test_missing_tun_device_says_modprobe() -> None:
    step, cause, remedy = failure(lambda: tun_device(None))
    assert (step, cause) == ("open /dev/net/tun", "No such file or directory")
    assert "modprobe tun" in remedy


@needs_root
def test_unreadable_tun_device_says_chmod() -> None:
    def prepare() -> None:
        tun_device(0o600)
        become_nobody()

    step, cause, remedy = failure(prepare)
    assert (step, cause) == ("open /dev/net/tun", "Permission denied")
    assert "chmod 0666 /dev/net/tun" in remedy


@needs_root
def test_disabled_user_namespaces_say_sysctl() -> None:
    def prepare() -> None:
        # in a user namespace of one's own the limit can be set to 0 for those inside; then give up all capabilities
        root_of_nothing()
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
        call(libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)))

    step, cause, remedy = failure(prepare)
    assert (step, cause) == ("create a user namespace", "No space left on device")
    assert "sysctl -w user.max_user_namespaces=" in remedy


@needs_root
def test_bad_setting_is_named() -> None:
    assert failure(lambda: None, mtu=20)[:2] == ["set the MTU of eth0", "Invalid argument"]
    step, cause, _ = failure(lambda: None, mac="01:00:00:00:00:01")
    assert step == "set the MAC address of eth0"
    assert cause == "Cannot assign requested address"


@needs_root
@pytest.mark.needs("ipv6")
def test_read_only_sysctls_still_give_a_quiet_link() -> None:
    def body() -> list[str]:
        read_only_sysctls()
        netns.create(MAC, ADDRESS, MTU)
        # with IPv6 on, an interface has its link-local address, if any, from the moment that it is up
        addresses = [line.split() for line in Path("/proc/net/if_inet6").read_text().splitlines()]
        return [Path("/proc/sys/net/ipv6/conf/eth0/disable_ipv6").read_text().strip(), *(a[-1] for a in addresses)]

    assert in_child(body) == ["0", "lo"]


@needs_root
def test_can_create_tells_the_reason() -> None:
    def refused() -> str | None:
        tun_device(0o600)
        become_nobody()
        return netns.can_create()

    def allowed() -> str | None:
        tun_device(0o666)
        become_nobody()
        return netns.can_create()

    assert in_child(netns.can_create) is None
    assert in_child(allowed) is None
    reason = in_child(refused)
    assert "/dev/net/tun" in reason
    assert "chmod" in reason


def test_can_create_leaves_this_process_where_it_was() -> None:
    before = os.stat("/proc/self/ns/net").st_ino, sorted(os.listdir("/proc/self/fd"))
    netns.can_create()
    assert (os.stat("/proc/self/ns/net").st_ino, sorted(os.listdir("/proc/self/fd"))) == before
