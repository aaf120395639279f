"""How much a guest may send: as xl has it in a configuration, and as the toolstack writes it for netback, ``rate`` in a back end.

xl's is ``SPEED[@INTERVAL]`` (xl-network-configuration(5)): ``10Mb/s``, ``250KB/s@20ms``; bits with a small b, bytes with a large,
powers of 1000; the interval, in which so much credit is given at once, is 50 ms by itself. The node is ``"BYTES,USECS"``: so many
bytes every so many microseconds (libxl_nic.c; Linux's xen_net_read_rate). What is made of it: dom0/credit.py.
"""

import re
from dataclasses import dataclass
from typing import Final

_SPEED: Final = re.compile(r"(\d{1,9})([KMG]?)(b|B)/s", re.ASCII)
_INTERVAL: Final = re.compile(r"(\d{1,9})(us|ms|s)", re.ASCII)
_NODE: Final = re.compile(r"(\d{1,18}),(\d{1,10})", re.ASCII)
_FACTORS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "us": 1, "ms": 10**3, "s": 10**6}
_DEFAULT_INTERVAL: Final = "50ms"
_MOST_USECS: Final = 2**32 - 1
_MOST_OCTETS: Final = 2**42
"""More is the same: no device sends so much in any interval."""


@dataclass(frozen=True, slots=True)
class Rate:
    """`octets` bytes every `usecs` microseconds. 0 of either: no limit."""

    octets: int
    usecs: int

    def node(self) -> str:
        """As the toolstack writes it."""
        return f"{self.octets},{self.usecs}"


UNLIMITED: Final = Rate(0, 0)


def configured_rate(text: str) -> Rate:
    """What a configuration says. ValueError, in words for its author, if it is no rate, or one that would let nothing through."""
    speed, _, interval = text.partition("@")
    amount, time = _SPEED.fullmatch(speed), _INTERVAL.fullmatch(interval or _DEFAULT_INTERVAL)
    if amount is None or time is None or text.endswith("@"):
        raise ValueError(f'{text!r} is not a rate such as "10Mb/s" or "250KB/s@20ms" (b: bits, B: bytes; s, ms or us)')
    usecs = int(time[1]) * _FACTORS[time[2]]
    octets = int(amount[1]) * _FACTORS[amount[2]] * usecs // (10**6 * (8 if amount[3] == "b" else 1))
    if not 0 < usecs <= _MOST_USECS:
        raise ValueError(f"{text!r}: the interval must be 1 us to {_MOST_USECS} us")
    if octets == 0:
        raise ValueError(f"{text!r} is less than a byte in an interval: nothing would ever be sent")
    return Rate(octets, usecs)


def node_rate(text: str) -> Rate:
    """What the node says. ValueError if it says nothing; its reader lets everything through then, as Linux does."""
    found = _NODE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:32]!r} is not BYTES,USECS: traffic is not limited")
    octets, usecs = min(int(found[1]), _MOST_OCTETS), int(found[2])
    return Rate(octets, usecs) if octets and usecs else UNLIMITED
