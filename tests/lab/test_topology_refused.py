"""Topology files: whatever is wrong is refused under its key, all of it at once."""

from pathlib import Path

import pytest

from lab.topology import PATHS
from tests.support import captures
from tests.support.topologies import ANNA, BERT, TAP, problems

ROOT = Path(__file__).resolve().parent.parent.parent

ONE_KEY = [
    # (text in front of the guest anna, key, part of the reason)
    ('name = "Lab"', "name", "'Lab' is not a name"),
    ('name = "-lab"', "name", "is not a name"),
    (f'name = "{"a" * 32}"', "name", "is not a name"),
    ('name = ""', "name", "is not a name"),
    ('name = "lab\\n"', "name", "is not a name"),
    ("name = 1", "name", "must be a valid string, not 1"),
    ("nam = 1", "nam", "is not a key (did you mean 'name'?)"),
    ("zzz = 1", "zzz", "is not a key; there are name, confined, memory, nic, dom0, spin, supervisor, cpu, model, guest, workload"),
    ('file = "other.toml"', "file", "is not a key"),
    ("[[guests]]", "guests", "is not a key (did you mean 'guest'?)"),
    ("memory = 3", "memory", "must be a table ([memory]), not 3"),
    ("nic = 3", "nic", "must be a table ([nic]), not 3"),
    ("nic.wire = 3", "nic.wire", "must be a table ([nic.wire]), not 3"),
    ("workload = 3", "workload", "must be an array of tables ([[workload]])"),
    ("workload = [3]", "workload", "must be an array of tables ([[workload]])"),
    ("[workload]", "workload", "must be an array of tables ([[workload]])"),
    ('memory.backing = "posx"', "memory.backing", "must be 'posix' or 'sealed', not 'posx' (did you mean 'posix'?)"),
    ("memory.size = 1", "memory.size", "is not a key; there are backing"),
    ("nic.engines = 0", "nic.engines", "must be greater than or equal to 1, not 0"),
    ("nic.engines = 9", "nic.engines", "must be less than or equal to 8, not 9"),
    ("nic.engines = true", "nic.engines", "must be a valid integer, not True"),
    ('nic.engines = "2"', "nic.engines", "must be a valid integer, not '2'"),
    ("nic.engines = 2.0", "nic.engines", "must be a valid integer, not 2.0"),
    ("nic.pause_us = -1", "nic.pause_us", "must be greater than or equal to 0"),
    ("nic.queue = 100", "nic.queue", "must be a power of two, not 100"),
    ("nic.queue = 32", "nic.queue", "must be greater than or equal to 64"),
    ("nic.queue = 8192", "nic.queue", "must be less than or equal to 4096"),
    ("nic.qeue = 64", "nic.qeue", "is not a key (did you mean 'queue'?)"),
    (
        'nic.wire.mode = "mirror"',
        "nic.wire.mode",
        "must be 'sink', 'reflect', 'generate', 'replay', 'record' or 'tap', not 'mirror'",
    ),
    ('nic.wire.mac = "02:00"', "nic.wire.mac", "is not a MAC address"),
    ('nic.wire.mac = "02:00:00:00:00:01"', "nic.wire.mac", "is guest[0].mac's already"),
    ("nic.wire.zzz = 1", "nic.wire.zzz", "is not a key; there are mode, mac, to, frame, pps, gbps, delay_us"),
    ("nic.wire.speed = 1", "nic.wire.speed", 'with mode = "replay" only'),
    ('nic.wire.file = "x"', "nic.wire.file", 'with mode = "replay" or "record" only'),
    ('nic.wire.mode = "replay"', "nic.wire.file", 'is required with mode = "replay": the capture file'),
    ('nic.wire.mode = "record"', "nic.wire.file", 'is required with mode = "record": the capture file'),
    ('nic.wire = {mode = "replay", file = "none.pcap"}', "nic.wire.file", "none.pcap: No such file or directory"),
    ('nic.wire = {mode = "replay", file = "/dev/null"}', "nic.wire.file", "/dev/null: is empty"),
    ('nic.wire = {mode = "replay", file = "x", speed = 0}', "nic.wire.speed", "a number above 0), not 0"),
    ('nic.wire = {mode = "replay", file = "x", speed = "fast"}', "nic.wire.speed", 'must be "recorded", "max"'),
    ('nic.wire = {mode = "replay", file = "x", times = -1}', "nic.wire.times", "greater than or equal to 0"),
    (
        'nic.wire = {mode = "replay", file = "x", to = "anna", rewrite = {"02:aa:00:00:00:01" = "anna"}}',
        "nic.wire.rewrite",
        "no meaning beside",
    ),
    ("nic.wire.gbps = -1", "nic.wire.gbps", "greater than or equal to 0"),
    ("nic.wire.gbps = 0.0001", "nic.wire.gbps", "at least 0.001, not 0.0001"),
    ("nic.wire.gbps = 1001", "nic.wire.gbps", "less than or equal to 1000"),
    ("nic.wire.gbps = nan", "nic.wire.gbps", "finite"),
    ("nic.wire.gbps = true", "nic.wire.gbps", "must be a valid number"),
    ("nic.wire.delay_us = -1", "nic.wire.delay_us", "greater than or equal to 0"),
    ("nic.wire.delay_us = 1000001", "nic.wire.delay_us", "less than or equal to 1000000"),
    ('nic.wire.mode = "generate"', "nic.wire.to", 'is required with mode = "generate"'),
    ('nic.wire = {mode = "generate", to = "ana"}', "nic.wire.to", "'ana' is not a guest (did you mean 'anna'?)"),
    ('nic.wire = {mode = "generate", to = "anna", frame = 63}', "nic.wire.frame", "greater than or equal to 64"),
    ('nic.wire = {mode = "generate", to = "anna", frame = 1515}', "nic.wire.frame", "whose mtu allows 1514"),
    ('nic.wire = {mode = "generate", to = "anna", pps = -1}', "nic.wire.pps", "greater than or equal to 0"),
    ('nic.wire.to = "anna"', "nic.wire.to", 'with mode = "generate" or "replay" only'),
    ("nic.wire.frame = 64", "nic.wire.frame", 'with mode = "generate" only'),
    ("nic.wire.pps = 0", "nic.wire.pps", 'with mode = "generate" only'),
    ('dom0.memory = "32 MB"', "dom0.memory", "'32 MB' is not a size"),
    ('dom0.memory = "-8 MiB"', "dom0.memory", "is not a size"),
    ("dom0.memory = 1.5", "dom0.memory", "1.5 is not a size"),
    ("dom0.memory = true", "dom0.memory", "True is not a size"),
    ('dom0.memory = "1 MiB"', "dom0.memory", "must be from 4 MiB to 1 GiB, not 1048576 bytes"),
    ('dom0.memory = "2 GiB"', "dom0.memory", "must be from 4 MiB to 1 GiB"),
    ("dom0.memory = 4194305", "dom0.memory", "must be a multiple of the page size, 4096 bytes; 4194305 is not"),
    ("dom0.ageing_s = 0", "dom0.ageing_s", "greater than or equal to 1"),
    ("spin.limit_us = 1001", "spin.limit_us", 'must be "auto" or an integer from 0 to 1000, not 1001'),
    ("spin.limit_us = -1", "spin.limit_us", 'must be "auto" or an integer'),
    ('spin.limit_us = "auta"', "spin.limit_us", 'must be "auto" or an integer'),
    ("spin.limit_us = true", "spin.limit_us", 'must be "auto" or an integer'),
]


@pytest.mark.parametrize(("text", "key", "reason"), ONE_KEY, ids=[text[:40] for text, _, _ in ONE_KEY])
def test_refused_key(tmp_path: Path, text: str, key: str, reason: str) -> None:
    found = problems(tmp_path, f"{text}\n{ANNA}")
    assert list(found) == [key]
    assert reason in found[key]


GUEST_KEY = [
    # (keys of a second guest, key, part of the reason)
    ('name = "anna"\npath = "split"', "name", "'anna' is guest[0].name's already"),
    ('name = "wire"\npath = "split"', "name", "'wire' is taken"),
    ('name = "dom0"\npath = "split"', "name", "'dom0' is taken"),
    ('name = "Bert"\npath = "split"', "name", "'Bert' is not a name"),
    ('path = "split"', "name", "is required"),
    ('name = "bert"', "path", "is required"),
    ('name = "bert"\npath = "splitt"', "path", f"there are {', '.join(PATHS)} (did you mean 'split'?)"),
    ('name = "bert"\npath = 1', "path", "must be a valid string, not 1"),
    ('name = "bert"\npath = "split"\nmac = "02:00:00:00:00"', "mac", "is not a MAC address"),
    ('name = "bert"\npath = "split"\nmac = "02-00-00-00-00-07"', "mac", "is not a MAC address"),
    ('name = "bert"\npath = "split"\nmac = "03:00:00:00:00:07"', "mac", "is a multicast address"),
    ('name = "bert"\npath = "split"\nmac = "ff:ff:ff:ff:ff:ff"', "mac", "is a multicast address"),
    ('name = "bert"\npath = "split"\nmac = "00:00:00:00:00:00"', "mac", "is nobody's address"),
    ('name = "bert"\npath = "split"\nmac = "02:00:00:00:00:01"', "mac", "is guest[0].mac's already"),
    ('name = "bert"\npath = "split"\nmac = "02:00:00:00:FF:01"', "mac", "is nic.wire.mac's already"),
    ('name = "bert"\npath = "split"\nmemory = "3 MiB"', "memory", "must be from 4 MiB to 1 GiB"),
    ('name = "bert"\npath = "split"\nprogram = "trafic"', "program", "(did you mean 'traffic'?)"),
    ('name = "bert"\npath = "split"\naddress = "10.0.0.2/24"', "address", 'with program = "tap" only'),
    ('name = "bert"\npath = "split"\nprogram = "tap"', "address", 'is required with program = "tap"'),
    ('name = "bert"\npath = "split"\nmtu = 575', "mtu", "greater than or equal to 576"),
    ('name = "bert"\npath = "split"\nmtu = 9001', "mtu", "less than or equal to 9000"),
    ('name = "bert"\npath = "split"\nmtu = 1501', "mtu", "more than nic.mtu = 1500"),
    ('name = "bert"\npath = "split"\nmtu = 9000\noffloads = ["csum"]', "offloads", 'needs "sg"'),
    ('name = "bert"\npath = "split"\noffloads = ["sg", "tso"]', "offloads", '"tso" needs "csum"'),
    ('name = "bert"\npath = "split"\noffloads = ["lro"]', "offloads", "'lro' is not an offload"),
    ('name = "bert"\npath = "split"\nadress = "10.0.0.2/24"', "adress", "is not a key (did you mean 'address'?)"),
]


@pytest.mark.parametrize(("text", "key", "reason"), GUEST_KEY, ids=[text.replace("\n", " ") for text, _, _ in GUEST_KEY])
def test_refused_guest_key(tmp_path: Path, text: str, key: str, reason: str) -> None:
    found = problems(tmp_path, f"{ANNA}[[guest]]\n{text}\n")
    assert list(found) == [f"guest[1].{key}"]
    assert reason in found[f"guest[1].{key}"]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.0.0.1/24", "is guest[0].address's already"),
        ("10.0.0.1/8", "is guest[0].address's already"),
        ("10.0.0.2", "is not an IPv4 address with the length of its prefix"),
        ("10.0.0.2/255.255.255.0", "is not an IPv4 address with the length of its prefix"),
        ("10.0.0.256/24", "is not an IPv4 address with the length of its prefix"),
        ("10.0.0.2/33", "is not an IPv4 address with the length of its prefix"),
        ("fd00::1/64", "is not an IPv4 address with the length of its prefix"),
        ("10.0.0.0/24", "is the network address of 10.0.0.0/24"),
        ("10.0.0.255/24", "is the broadcast address of 10.0.0.0/24"),
        ("10.0.0.2/32", "the prefix must be 1 to 31 bits long"),
        ("10.0.0.2/0", "the prefix must be 1 to 31 bits long"),
        ("0.0.0.1/8", "is not an address that a host can have"),
        ("127.0.0.2/8", "is not an address that a host can have"),
        ("224.0.0.5/24", "is not an address that a host can have"),
        ("250.0.0.1/24", "is not an address that a host can have"),
    ],
)
def test_refused_address(tmp_path: Path, address: str, reason: str) -> None:
    second = TAP.replace("tess", "toni").replace("10.0.0.1/24", address)
    found = problems(tmp_path, TAP + second)
    assert list(found) == ["guest[1].address"]
    assert reason in found["guest[1].address"]


@pytest.mark.parametrize(
    ("lines", "key", "reason"),
    [
        ('address6 = "fd00::1"', "address6", "is not an IPv6 address with the length of its prefix, such as fd00::1/64"),
        ('address6 = "10.0.0.1/24"', "address6", "is not an IPv6 address with the length of its prefix"),
        ('address6 = "fd00::1/129"', "address6", "is not an IPv6 address with the length of its prefix"),
        ('address6 = "fd00::1/128"', "address6", "the prefix must be 1 to 127 bits long"),
        ('address6 = "fd00::/64"', "address6", "is the address of all routers of fd00::/64"),
        ('address6 = "fe80::1/64"', "address6", "is a link-local address, which link_local = true gives"),
        ('address6 = "ff02::1/64"', "address6", "is not an address that a host can have"),
        ('address6 = "::1/64"', "address6", "is not an address that a host can have"),
        ('mtu = 1200\naddress6 = "fd00::1/64"', "address6", "IPv6 needs an mtu of at least 1280, not 1200"),
        ("mtu = 1200\nlink_local = true", "link_local", "IPv6 needs an mtu of at least 1280, not 1200"),
        ('gateway = "10.0.1.1"', "gateway", "is not in 10.0.0.0/24, the guest's network"),
        ('gateway = "10.0.0.1"', "gateway", "is the guest's own address"),
        ('gateway = "bob"', "gateway", "is not an IPv4 address, such as 10.0.0.1"),
        ('gateway6 = "fd00::2"', "gateway6", "needs an address6, in whose network it is"),
        ('address6 = "fd00::1/64"\ngateway6 = "10.0.0.2"', "gateway6", "is not an IPv6 address, such as fd00::1"),
    ],
)
def test_refused_network_of_a_guest(tmp_path: Path, lines: str, key: str, reason: str) -> None:
    found = problems(tmp_path, TAP + lines + "\n")
    assert list(found) == [f"guest[0].{key}"]
    assert reason in found[f"guest[0].{key}"]


WIRE_TAP = '[nic.wire]\nmode = "tap"\n'


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        ('[nic.wire]\ninterface = "lab0"\n', "nic.wire.interface", 'has a meaning with mode = "tap" only'),
        ('[nic.wire]\naddress = "10.0.0.9/24"\n', "nic.wire.address", 'has a meaning with mode = "tap" only'),
        (WIRE_TAP + 'interface = "much-too-long-a-name"\n', "nic.wire.interface", "is not a name of an interface"),
        (WIRE_TAP + 'interface = "a/b"\n', "nic.wire.interface", "is not a name of an interface"),
        (WIRE_TAP + "gbps = 1.0\n", "nic.wire.gbps", 'has no meaning with mode = "tap"'),
        (WIRE_TAP + "delay_us = 5\n", "nic.wire.delay_us", 'has no meaning with mode = "tap"'),
        (WIRE_TAP + 'address = "10.0.0.0/24"\n', "nic.wire.address", "is the network address"),
        (WIRE_TAP + 'address = "10.0.0.1/24"\n', "guest[0].address", "is nic.wire.address's already"),
        (WIRE_TAP + 'to = "tess"\n', "nic.wire.to", 'has a meaning with mode = "generate" or "replay" only'),
    ],
)
def test_refused_wire_to_the_host(tmp_path: Path, text: str, key: str, reason: str) -> None:
    found = problems(tmp_path, text + TAP)
    assert list(found) == [key]
    assert reason in found[key]


def test_a_wire_to_the_host_takes_part_in_no_workload(tmp_path: Path) -> None:
    found = problems(tmp_path, WIRE_TAP + ANNA + '[[workload]]\nkind = "stream"\nfrom = "anna"\nto = "wire"\nframes = 1\n')
    assert "the wire leads to the host" in found["workload[0].to"]


@pytest.mark.parametrize("line", ['address6 = "fd00::1/64"', "link_local = true", 'gateway = "10.0.0.2"', 'gateway6 = "fd00::2"'])
def test_only_tap_guests_have_a_network(tmp_path: Path, line: str) -> None:
    found = problems(tmp_path, ANNA + line + "\n")
    assert 'with program = "tap" only' in found[f"guest[0].{line.split()[0]}"]


def test_ipv6_addresses_are_unique_however_they_are_written(tmp_path: Path) -> None:
    second = TAP.replace("tess", "toni").replace("10.0.0.1/24", "10.0.0.2/24") + 'address6 = "fd00:0::0001/64"\n'
    found = problems(tmp_path, TAP + 'address6 = "fd00::1/64"\n' + second)
    assert found == {"guest[1].address6": "'fd00::1' is guest[0].address6's already"}


def test_derived_mac_is_not_the_one_refused(tmp_path: Path) -> None:
    """A user can correct only what is in the file."""
    found = problems(tmp_path, ANNA + 'mac = "02:00:00:00:00:02"\n' + BERT)
    assert found == {"guest[0].mac": "'02:00:00:00:00:02' is guest[1].mac's already"}


@pytest.mark.parametrize("count", [0, 65])
def test_number_of_guests(tmp_path: Path, count: int) -> None:
    text = "".join(f'[[guest]]\nname = "g{i}"\npath = "bypass"\n' for i in range(count))
    assert problems(tmp_path, text) == {"guest": f"a topology has 1 to 64 guests, not {count}"}


def test_guest_that_is_no_table(tmp_path: Path) -> None:
    assert problems(tmp_path, "guest = 1") == {"guest": "must be an array of tables ([[guest]])"}


WORKLOAD_KEY = [
    ('kind = "strem"\nfrom = "anna"\nto = "bert"\nframes = 1', "kind", "(did you mean 'stream'?)"),
    ('from = "anna"\nto = "bert"\nframes = 1', "kind", "is required"),
    ('kind = "rr"\nto = "bert"\nframes = 1', "from", "is required"),
    ('kind = "rr"\nfrom = "bert"\nframes = 1', "to", "is required"),
    ('kind = "rr"\nfrom_ = "anna"\nfrom = "anna"\nto = "bert"\nframes = 1', "from_", "is not a key"),
    ('kind = "rr"\nfrom = "ana"\nto = "bert"\nframes = 1', "from", "neither a guest nor 'wire' (did you mean 'anna'?)"),
    ('kind = "rr"\nfrom = "anna"\nto = "wyre"\nframes = 1', "to", "neither a guest nor 'wire' (did you mean 'wire'?)"),
    ('kind = "rr"\nfrom = "anna"\nto = "anna"\nframes = 1', "to", "'anna' is the sender itself"),
    ('kind = "stream"\nfrom = "wire"\nto = "wire"\nframes = 1', "to", "'wire' is the sender itself"),
    ('kind = "rr"\nfrom = "wire"\nto = "bert"\nframes = 1', "from", "the wire answers round trips"),
    ('kind = "rr"\nfrom = "tess"\nto = "bert"\nframes = 1', "from", "guest 'tess' has program = \"tap\""),
    ('kind = "rr"\nfrom = "bert"\nto = "tess"\nframes = 1', "to", "guest 'tess' has program = \"tap\""),
    ('kind = "rr"\nfrom = "anna"\nto = "bert"', "frames", "exactly one of seconds and frames"),
    ('kind = "rr"\nfrom = "anna"\nto = "bert"\nframes = 1\nseconds = 1.0', "frames", "both are given"),
    ('kind = "rr"\nfrom = "anna"\nto = "bert"\nframes = 0', "frames", "greater than or equal to 1"),
    ('kind = "rr"\nfrom = "anna"\nto = "bert"\nframes = 1.0', "frames", "must be a valid integer"),
    ('kind = "rr"\nfrom = "anna"\nto = "bert"\nframes = 10000000000000000000000', "frames", "less than or equal to"),
    ('kind = "rr"\nfrom = "anna"\nto = "bert"\nseconds = 0', "seconds", "greater than 0"),
    ('kind = "rr"\nfrom = "anna"\nto = "bert"\nseconds = nan', "seconds", "must be a finite number"),
    ('kind = "rr"\nfrom = "anna"\nto = "bert"\nseconds = inf', "seconds", "must be a finite number"),
    ('kind = "rr"\nfrom = "anna"\nto = "bert"\nseconds = "1 s"', "seconds", "must be a valid number"),
    ('kind = "rr"\nfrom = "anna"\nto = "bert"\nframes = 1\nframe = 63', "frame", "greater than or equal to 64"),
    ('kind = "rr"\nfrom = "anna"\nto = "bert"\nframes = 1\nframe = 65537', "frame", "less than or equal to 65536"),
    ('kind = "rr"\nfrom = "anna"\nto = "bert"\nframes = 1\nframe = 1201', "frame", "too long for guest 'bert'"),
    ('kind = "rr"\nfrom = "anna"\nto = "bert"\nsecond = 1\nframes = 1', "second", "(did you mean 'seconds'?)"),
]


@pytest.mark.parametrize(("text", "key", "reason"), WORKLOAD_KEY, ids=[text.replace("\n", " ")[:90] for text, _, _ in WORKLOAD_KEY])
def test_refused_workload_key(tmp_path: Path, text: str, key: str, reason: str) -> None:
    sound = '[[workload]]\nkind = "rr"\nfrom = "anna"\nto = "bert"\nframes = 1\nframe = 1200\n'
    guests = f"{ANNA}{BERT}mtu = 1186\n{TAP}"
    found = problems(tmp_path, f"{guests}{sound}[[workload]]\n{text}\n")
    assert list(found) == [f"workload[1].{key}"]
    assert reason in found[f"workload[1].{key}"]


def test_generated_frame_longer_than_the_mtu(tmp_path: Path) -> None:
    wire = 'nic.wire = {mode = "generate", to = "anna", frame = 591}\n'
    found = problems(tmp_path, wire + ANNA + "mtu = 576\n")
    assert found == {"nic.wire.frame": "591 bytes are too long for guest 'anna', whose mtu allows 590"}


def test_all_problems_come_at_once_and_none_follows_from_another(tmp_path: Path) -> None:
    text = """
        nam = "x"
        memory.backing = "shm"
        nic.engines = 9
        nic.wire.mac = "x"
        dom0.memory = 1
        spin.limit_us = "none"
        [[guest]]
        name = "anna"
        path = "x"
        mac = "y"
        program = "tap"
        [[guest]]
        name = "bert"
        path = "split"
        memory = "4 TiB"
        mtu = 9001
        [[workload]]
        kind = "x"
        from = "bert"
        to = "nobody"
        frame = 1
    """
    assert sorted(problems(tmp_path, text)) == sorted(
        [
            "nam",
            "memory.backing",
            "nic.engines",
            "nic.wire.mac",
            "dom0.memory",
            "spin.limit_us",
            "guest[0].path",
            "guest[0].mac",
            "guest[0].address",
            "guest[1].memory",
            "guest[1].mtu",
            "workload[0].kind",
            "workload[0].to",
            "workload[0].frame",
            "workload[0].frames",
        ]
    )


def test_whom_replayed_frames_are_for_is_known(tmp_path: Path) -> None:
    captures.write(tmp_path / "x.pcapng", captures.traffic(count=2))
    replay = '[nic.wire]\nmode = "replay"\nfile = "x.pcapng"\n'  # relative to the topology's folder
    assert problems(tmp_path, replay + 'to = "ana"\n' + ANNA) == {"nic.wire.to": "'ana' is not a guest (did you mean 'anna'?)"}
    found = problems(tmp_path, replay + 'rewrite = { "02:aa:00:00:00:01" = "ana", "02:aa:00:00:00:02" = "wire" }\n' + ANNA)
    reason = "02:aa:00:00:00:01: 'ana' is neither a guest nor a MAC address (did you mean 'anna'?)"
    assert found == {"nic.wire.rewrite": reason}


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        ("", "file", "is required"),
        ('file = "none.pcap"', "file", "none.pcap: No such file"),
        ('file = "x.pcapng"\nframe = 64', "frame", "the frames are the file's"),
        ('file = "x.pcapng"\nframes = 64', "frames", "a replay ends by its `times`"),
        ('file = "x.pcapng"\ntimes = 0', "frames", "needs `seconds`"),
        ('file = "x.pcapng"\nspeed = true', "speed", "must be"),
        ('file = "x.pcapng"\nsnapped = "send"', "snapped", "must be 'pad', 'cut' or 'drop'"),
    ],
)
def test_refused_replay(tmp_path: Path, text: str, key: str, reason: str) -> None:
    captures.write(tmp_path / "x.pcapng", captures.traffic(count=2))
    found = problems(tmp_path, f'{ANNA}{BERT}[[workload]]\nkind = "replay"\nfrom = "anna"\nto = "bert"\n{text}\n')
    assert list(found) == [f"workload[0].{key}"]
    assert reason in found[f"workload[0].{key}"]
