"""What a value in a topology file may be: sizes, names, addresses, CPUs; and the base of all tables. Manual: docs/topology.md."""

import os
import re
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from dom0.rate import configured_rate
from domu.programs.table import NAMED
from hyp.abi.features import OFFLOADS
from hyp.abi.sizes import MAX_ENGINES, MAX_PRICE, MAX_QUEUES, PAGE
from hyp.net.addresses import checked_address, checked_address6
from lab.cpus import checked_cpus
from lab.schema.words import GIB, KIB, MIB, show_size, suggest

WIRE: Final = "wire"  # the peer beyond the NIC, where a workload names one
RESERVED: Final = (WIRE, "keeper", "hyp", "xenstored", "dom0", "nic")  # owners of regions and of counters

MIN_RAM, MAX_RAM = 4 * MIB, GIB
MIN_WORKLOAD_FRAME, MAX_WORKLOAD_FRAME = 64, 1 << 16  # Ethernet without its checksum
MIN_IPV6_MTU: Final = 1280  # RFC 8200, section 5
HEADER: Final = 14  # what a frame has more than the MTU counts
MAX_COUNT: Final = 10**15  # round trips, frames: exact in a double, and far from the int64 of compiled code

# Shared memory beside RAM, for the estimate: generous, since its use is to refuse early what cannot work.
DOMAIN_OVERHEAD: Final = 512 * KIB  # doorbells, grant table and use counts, counters, checkpoints, rings
ENGINE_OVERHEAD: Final = 2 * MIB  # rings between engines, epoch and checkpoint pages, counters
BASE_OVERHEAD: Final = 2 * MIB  # platform page, domain table, the processes' own counters
TABLE_BYTES_PER_PAGE: Final = 16  # an IOMMU table entry and a hold count for each page of RAM

_SIZE = re.compile(r"(\d{1,15}) ?(KiB|MiB|GiB)")
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
NAME_RULE: Final = "1 to 31 of a-z, 0-9 and '-', not beginning with '-'"
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


# --- values ----------------------------------------------------------------------------------------------------------


def _ram(value: object) -> int:
    """Bytes of RAM: an integer, or a number with a binary unit."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            raise ValueError(f'{value!r} is not a size: write "16 MiB" (KiB, MiB or GiB), or a number of bytes')
        value = int(match[1]) * {"KiB": KIB, "MiB": MIB, "GiB": GIB}[match[2]]
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f'{value!r} is not a size: write "16 MiB", or a number of bytes')
    if not MIN_RAM <= value <= MAX_RAM:
        raise ValueError(f"must be from {show_size(MIN_RAM)} to {show_size(MAX_RAM)}, not {value} bytes")
    if value % PAGE:
        raise ValueError(f"must be a multiple of the page size, {PAGE} bytes; {value} is not")
    return value


def checked_name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError(f"{value!r} is not a name: {NAME_RULE}")
    return value


def checked_guest_name(value: str) -> str:
    if value in RESERVED:
        raise ValueError(f"{value!r} is taken: {', '.join(RESERVED)} are names of the lab's own")
    return checked_name(value)


def _mac(value: str) -> str:
    mac = value.lower()
    if not MAC.fullmatch(mac):
        raise ValueError(f"{value!r} is not a MAC address such as 02:00:00:00:00:01")
    if int(mac[:2], 16) & 1:
        raise ValueError(f"{value!r} is a multicast address; a device's own is unicast (first byte even)")
    if mac == "00:00:00:00:00:00":
        raise ValueError(f"{value!r} is nobody's address")
    return mac


def checked_interface(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", value) or value in (".", ".."):
        raise ValueError(f"{value!r} is not a name of an interface: 1 to 15 of A-Z, a-z, 0-9, '_', '.' and '-'")
    return value


def checked_spin(value: object) -> object:
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 1000):
        raise ValueError(f'must be "auto" or an integer from 0 to 1000, not {value!r}')
    return value


def checked_program(value: object) -> object:
    if isinstance(value, str) and value not in NAMED:
        raise ValueError(f"must be {' or '.join(map(repr, NAMED))}, or {{ argv = [...] }}, not {value!r}{suggest(value, NAMED)}")
    return value


def checked_offloads(value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        if name not in OFFLOADS:
            raise ValueError(f"{name!r} is not an offload; there are {', '.join(OFFLOADS)}{suggest(name, OFFLOADS)}")
    if "tso" in value and "csum" not in value:
        raise ValueError('"tso" needs "csum": segments are made with their checksums')
    return value


def checked_rate(value: str) -> str:
    configured_rate(value)
    return value


def checked_power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError(f"must be a power of two, not {value}")
    return value


def checked_speed(value: object) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value not in ("recorded", "max") and not (number and 0 < float(str(value)) < float("inf")):
        raise ValueError(f'must be "recorded", "max", or by how much it is faster (a number above 0), not {value!r}')
    return value


Ram = Annotated[int, BeforeValidator(_ram)]
Mac = Annotated[str, AfterValidator(_mac)]
Cpus = Annotated[list[int], BeforeValidator(checked_cpus)]
Address = Annotated[str, AfterValidator(checked_address)]
Address6 = Annotated[str, AfterValidator(checked_address6)]
Engines = Annotated[int, Field(ge=1, le=MAX_ENGINES)]
Queues = Annotated[int, Field(ge=1, le=MAX_QUEUES)]
PriceOf = Annotated[int, Field(ge=0, le=MAX_PRICE)]
Speed = Annotated[float | int | str, BeforeValidator(checked_speed)]
Times = Annotated[int, Field(ge=0, le=MAX_COUNT)]
File = Annotated[str, AfterValidator(os.path.abspath)]
Frame = Annotated[int, Field(ge=MIN_WORKLOAD_FRAME, le=MAX_WORKLOAD_FRAME)]


# --- tables ----------------------------------------------------------------------------------------------------------


class Table(BaseModel):
    """What all tables have in common: no unknown keys, no conversions (true is not 1), no changes later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
