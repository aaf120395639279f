"""The tables of a topology file: each key, its default and its limits. Manual: docs/topology.md.

A check that concerns two keys of one table stands at the key that a user would correct, and looks only at sound others.
"""

import difflib
import re
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    field_validator,
)
from pydantic import ValidationInfo as Info

from dom0.rate import configured_rate
from domu.programs.table import NAMED, program_of, those
from hyp.abi.features import OFFLOADS
from hyp.abi.sizes import DEFAULT_MTU, MAX_ENGINES, MAX_GBPS, MAX_MTU, MAX_PRICE, MAX_QUEUES, MIN_GBPS, PAGE
from hyp.net.addresses import checked_address, checked_address6, checked_gateway
from hyp.paths import GRANT_MODES, IOMMU_FRONT_ENDS, PATHS, Attachment
from lab.cpus import checked_cpus, checked_nic_cpus

RENAMED: Final = {"persistent_grants": 'true is grants = "persistent" now'}
"""Keys that there were, and what takes their place."""

WIRE: Final = "wire"  # the peer beyond the NIC, where a workload names one
RESERVED: Final = (WIRE, "keeper", "hyp", "xenstored", "dom0", "nic")  # owners of regions and of counters

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
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
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


# --- values ----------------------------------------------------------------------------------------------------------


def suggest(word: object, known: Iterable[str]) -> str:
    """A hint for the end of a message, if one of the `known` words is like `word`; else nothing."""
    close = difflib.get_close_matches(str(word), list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def show_size(size: int) -> str:
    """A number of bytes as people read it: ``"16 MiB"``, ``"64.5 MiB"``."""
    unit, name = next(((u, n) for u, n in ((GIB, "GiB"), (MIB, "MiB")) if size >= u), (KIB, "KiB"))
    return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"


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


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError(f"{value!r} is not a name: {NAME_RULE}")
    return value


def _guest_name(value: str) -> str:
    if value in RESERVED:
        raise ValueError(f"{value!r} is taken: {', '.join(RESERVED)} are names of the lab's own")
    return _name(value)


def _mac(value: str) -> str:
    mac = value.lower()
    if not _MAC.fullmatch(mac):
        raise ValueError(f"{value!r} is not a MAC address such as 02:00:00:00:00:01")
    if int(mac[:2], 16) & 1:
        raise ValueError(f"{value!r} is a multicast address; a device's own is unicast (first byte even)")
    if mac == "00:00:00:00:00:00":
        raise ValueError(f"{value!r} is nobody's address")
    return mac


def _interface(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", value) or value in (".", ".."):
        raise ValueError(f"{value!r} is not a name of an interface: 1 to 15 of A-Z, a-z, 0-9, '_', '.' and '-'")
    return value


def _spin(value: object) -> object:
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 1000):
        raise ValueError(f'must be "auto" or an integer from 0 to 1000, not {value!r}')
    return value


def _program(value: object) -> object:
    if isinstance(value, str) and value not in NAMED:
        raise ValueError(f"must be {' or '.join(map(repr, NAMED))}, or {{ argv = [...] }}, not {value!r}{suggest(value, NAMED)}")
    return value


def _offloads(value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        if name not in OFFLOADS:
            raise ValueError(f"{name!r} is not an offload; there are {', '.join(OFFLOADS)}{suggest(name, OFFLOADS)}")
    if "tso" in value and "csum" not in value:
        raise ValueError('"tso" needs "csum": segments are made with their checksums')
    return value


def _rate(value: str) -> str:
    configured_rate(value)
    return value


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError(f"must be a power of two, not {value}")
    return value


Ram = Annotated[int, BeforeValidator(_ram)]
Mac = Annotated[str, AfterValidator(_mac)]
Cpus = Annotated[list[int], BeforeValidator(checked_cpus)]
Address = Annotated[str, AfterValidator(checked_address)]
Address6 = Annotated[str, AfterValidator(checked_address6)]
Engines = Annotated[int, Field(ge=1, le=MAX_ENGINES)]
Queues = Annotated[int, Field(ge=1, le=MAX_QUEUES)]
PriceOf = Annotated[int, Field(ge=0, le=MAX_PRICE)]
Frame = Annotated[int, Field(ge=MIN_WORKLOAD_FRAME, le=MAX_WORKLOAD_FRAME)]


# --- tables ----------------------------------------------------------------------------------------------------------


class Table(BaseModel):
    """What all tables have in common: no unknown keys, no conversions (true is not 1), no changes later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Memory(Table):
    """``[memory]``"""

    backing: Literal["posix", "sealed"] = "posix"


class Wire(Table):
    """``[nic.wire]``: what is at the other end of the NIC's cable. `frame` in bytes; `pps`, `gbps` 0: no limit."""

    mode: Literal["sink", "reflect", "generate", "tap"] = "sink"
    mac: Mac = "02:00:00:00:ff:01"
    to: str | None = Field(default=None, validate_default=True)
    frame: Frame = 64
    pps: int = Field(default=0, ge=0, le=10**9)
    gbps: float = Field(default=0.0, ge=0, le=MAX_GBPS, allow_inf_nan=False)
    delay_us: int = Field(default=0, ge=0, le=1_000_000)
    interface: Annotated[str, AfterValidator(_interface)] = "xbl0"
    address: Address | None = None
    address6: Address6 | None = None

    @field_validator("interface", "address", "address6")
    @classmethod
    def _only_with_tap(cls, value: Any, info: Info) -> Any:
        if value is not None and info.data.get("mode", "tap") != "tap":
            raise ValueError('has a meaning with mode = "tap" only')
        return value

    @field_validator("gbps", "delay_us")
    @classmethod
    def _not_with_tap(cls, value: Any, info: Info) -> Any:
        if value and info.data.get("mode") == "tap":
            raise ValueError('has no meaning with mode = "tap": that wire is as fast as the host')
        return value

    @field_validator("gbps")
    @classmethod
    def _no_snail(cls, gbps: float) -> float:
        if 0 < gbps < MIN_GBPS:
            raise ValueError(f"must be 0, which is no limit, or at least {MIN_GBPS}, not {gbps}")
        return gbps

    @field_validator("to")
    @classmethod
    def _to_with_generate(cls, to: str | None, info: Info) -> str | None:
        if to is None and info.data.get("mode") == "generate":
            raise ValueError('is required with mode = "generate": the guest that the frames are for')
        return to

    @field_validator("to", "frame", "pps")
    @classmethod
    def _only_with_generate(cls, value: Any, info: Info) -> Any:
        # runs on what the file gives, and on the None that `to` has by default
        if value is not None and info.data.get("mode", "generate") != "generate":
            raise ValueError('has a meaning with mode = "generate" only')
        return value


class Nic(Table):
    """``[nic]``: `pause_us` in microseconds, `queue` in descriptors, `mtu` in bytes."""

    engines: Engines = 1
    mtu: int = Field(default=DEFAULT_MTU, ge=DEFAULT_MTU, le=MAX_MTU)
    pause_us: int = Field(default=20_000, ge=0, le=1_000_000)
    queue: Annotated[int, Field(ge=64, le=4096), AfterValidator(_power_of_two)] = 256
    wire: Wire = Wire()


class Dom0(Table):
    """``[dom0]``: `memory` in bytes, `ageing_s` in seconds; `max_queues` is what netback offers each vif."""

    memory: Ram = 32 * MIB
    ageing_s: int = Field(default=300, ge=1, le=1_000_000)
    max_queues: Queues = MAX_QUEUES


class Spin(Table):
    """``[spin]``: how long a loop may look for work before it sleeps, in microseconds."""

    limit_us: Annotated[int | Literal["auto"], BeforeValidator(_spin)] = "auto"


class Cpu(Table):
    """``[cpu]``: who runs where, by CPU number, and who may spin (lab/cpus.py). None: who runs where the others are not."""

    hyp: Cpus | None = None
    dom0: Cpus | None = None
    nic: Annotated[list[int] | list[list[int]], BeforeValidator(checked_nic_cpus)] | None = None
    guests: dict[str, Cpus] = {}
    programs: Cpus | None = None
    spin: list[str] | None = None


class Price(Table):
    """``[model] price``: what operations cost in addition (hyp/model/operations.py), so that a lab can be calibrated."""

    hypercall_ns: PriceOf = 0
    vm_exit_ns: PriceOf = 0
    event_send_ns: PriceOf = 0
    domain_switch_ns: PriceOf = 0
    interrupt_ns: PriceOf = 0
    grant_map_ns: PriceOf = 0
    grant_unmap_ns: PriceOf = 0
    grant_flush_ns: PriceOf = 0
    grant_copy_ns: PriceOf = 0
    grant_copy_ps_per_byte: PriceOf = 0
    iommu_map_ns: PriceOf = 0
    iommu_unmap_ns: PriceOf = 0
    iommu_flush_ns: PriceOf = 0
    dma_ps_per_byte: PriceOf = 0


class Model(Table):
    """``[model]``: `price` has what the `profile` says already (lab/topology.py)."""

    profile: str | None = None
    price: Price = Price()


class OwnProgram(Table):
    """``program = { argv = [...] }``: any program that is the guest itself; `cwd` is the folder of the topology file."""

    argv: tuple[str, ...] = Field(min_length=1, strict=False)  # TOML has lists
    cwd: str = ""

    @field_validator("argv")
    @classmethod
    def _words(cls, argv: tuple[str, ...]) -> tuple[str, ...]:
        if not argv[0]:
            raise ValueError("the first word, the program, is empty")
        for word in argv:
            if "\0" in word:
                raise ValueError(f"{word!r} has a NUL in it, which no program can be given")
        return argv


class Guest(Table):
    """One ``[[guest]]``: `memory` and `mtu` in bytes; addresses and gateways are None but for program "tap"."""

    name: Annotated[str, AfterValidator(_guest_name)]
    path: str
    mac: Mac
    memory: Ram = 16 * MIB
    program: Annotated[str | OwnProgram, BeforeValidator(_program)] = "traffic"
    address: Address | None = Field(default=None, validate_default=True)
    mtu: int = Field(default=DEFAULT_MTU, ge=576, le=MAX_MTU)
    address6: Address6 | None = None
    link_local: bool = False
    gateway: str | None = None
    gateway6: str | None = None
    grants: str = "copy"
    rate: Annotated[str, AfterValidator(_rate)] | None = None
    offloads: Annotated[tuple[str, ...], Field(strict=False), AfterValidator(_offloads)] = tuple(OFFLOADS)
    iommu: str = "persistent"
    queues: Queues = 1
    batches: bool = True

    @field_validator("batches")
    @classmethod
    def _batches_of_a_tap(cls, batches: bool, info: Info) -> bool:
        if not batches and "program" in info.data and not program_of(info.data["program"]).addressed:
            raise ValueError(f"false has a meaning with program = {those('addressed')} only")
        return batches

    @field_validator("offloads")
    @classmethod
    def _jumbo_with_fragments(cls, offloads: tuple[str, ...], info: Info) -> tuple[str, ...]:
        if info.data.get("mtu", 0) > DEFAULT_MTU and "sg" not in offloads:
            raise ValueError(f'an mtu of {info.data["mtu"]} needs "sg": no more than one of {DEFAULT_MTU} fits into a buffer')
        return offloads

    @field_validator("path")
    @classmethod
    def _known_path(cls, path: str) -> str:
        if path not in PATHS:
            raise ValueError(f"{path!r} is not a path; there are {', '.join(PATHS)}{suggest(path, PATHS)}")
        return path

    @field_validator("address")
    @classmethod
    def _address_with_tap(cls, address: str | None, info: Info) -> str | None:
        if "program" not in info.data:
            return address
        addressed = program_of(info.data["program"]).addressed
        if addressed and address is None:
            raise ValueError(f'is required with program = "{info.data["program"]}", such as "10.0.0.1/24"')
        if not addressed and address is not None:
            raise ValueError(f"has a meaning with program = {those('addressed')} only")
        return address

    @field_validator("address6", "link_local", "gateway", "gateway6")
    @classmethod
    def _network_with_tap(cls, value: Any, info: Info) -> Any:
        if value and "program" in info.data and not program_of(info.data["program"]).addressed:
            raise ValueError(f"has a meaning with program = {those('addressed')} only")
        return value

    @field_validator("address6", "link_local")
    @classmethod
    def _mtu_for_ipv6(cls, value: Any, info: Info) -> Any:
        if value and info.data.get("mtu", MIN_IPV6_MTU) < MIN_IPV6_MTU:
            raise ValueError(f"IPv6 needs an mtu of at least {MIN_IPV6_MTU}, not {info.data['mtu']}")
        return value

    @field_validator("gateway", "gateway6")
    @classmethod
    def _neighbour(cls, gateway: str | None, info: Info) -> str | None:
        key = str(info.field_name).replace("gateway", "address")
        own = info.data.get(key)
        if gateway is None or key not in info.data:
            return gateway
        if own is None:
            raise ValueError(f"needs an {key}, in whose network it is")
        return checked_gateway(gateway, own)

    @field_validator("iommu")
    @classmethod
    def _strategy_with_iommu(cls, strategy: str, info: Info) -> str:
        path = info.data.get("path")
        if strategy not in IOMMU_FRONT_ENDS:
            raise ValueError(f"{strategy!r} is none of {', '.join(IOMMU_FRONT_ENDS)}{suggest(strategy, IOMMU_FRONT_ENDS)}")
        if strategy != "persistent" and path is not None and PATHS[path].attachment is not Attachment.CONTEXT:
            through = " or ".join(f'"{name}"' for name, spec in PATHS.items() if spec.attachment is Attachment.CONTEXT)
            raise ValueError(f"has a meaning with path = {through} only, not with {path!r}")
        return strategy

    @field_validator("queues")
    @classmethod
    def _several_where_there_can_be(cls, queues: int, info: Info) -> int:
        path, program = info.data.get("path"), info.data.get("program")
        if queues > 1 and path is not None and PATHS[path].further is None:
            several = " or ".join(f'"{name}"' for name, spec in PATHS.items() if spec.further is not None)
            raise ValueError(f"more than one takes path = {several}, not {path!r}")
        if queues > 1 and info.data.get("iommu", "persistent") != "persistent":
            raise ValueError(f'more than one takes iommu = "persistent", not {info.data["iommu"]!r}')
        if queues > 1 and program is not None and not program_of(program).queues:
            raise ValueError(f"more than one takes program = {those('queues')} or one of your own, not {program!r}")
        return queues

    @field_validator("grants")
    @classmethod
    def _known_mode(cls, grants: str) -> str:
        if grants not in GRANT_MODES:
            raise ValueError(f"{grants!r} is none of {', '.join(GRANT_MODES)}{suggest(grants, GRANT_MODES)}")
        return grants

    @field_validator("grants", "rate")
    @classmethod
    def _on_split_only(cls, wanted: Any, info: Info) -> Any:
        path = info.data.get("path")
        if (
            wanted != cls.model_fields[str(info.field_name)].default
            and path is not None
            and PATHS[path].attachment is not Attachment.VIF
        ):
            who = f"guest {info.data['name']!r}" if "name" in info.data else "this guest"
            grants = " or ".join(f'"{name}"' for name, spec in PATHS.items() if spec.attachment is Attachment.VIF)
            raise ValueError(f"has a meaning with path = {grants} only, and the path of {who} is {path!r}")
        return wanted


class Workload(Table):
    """One ``[[workload]]``: for `seconds`, or until `frames` frames (kind "rr": round trips); `frame` in bytes."""

    kind: Literal["stream", "rr"]
    from_: str = Field(alias="from")
    to: str
    frame: Frame = 64
    payload: Literal["full", "header"] = "full"
    seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    frames: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = Field(default=None, validate_default=True)

    @field_validator("to")
    @classmethod
    def _not_self(cls, to: str, info: Info) -> str:
        if to == info.data.get("from_"):
            raise ValueError(f"{to!r} is the sender itself")
        return to

    @field_validator("frames")
    @classmethod
    def _one_limit(cls, frames: int | None, info: Info) -> int | None:
        if "seconds" in info.data and (frames is None) == (info.data["seconds"] is None):
            given = "neither is" if frames is None else "both are"
            raise ValueError(f"exactly one of seconds and frames says when a workload ends; {given} given")
        return frames


class Topology(Table):
    """A sound topology, every default filled in."""

    name: Annotated[str, AfterValidator(_name)]
    memory: Memory = Memory()
    nic: Nic = Nic()
    dom0: Dom0 = Dom0()
    spin: Spin = Spin()
    cpu: Cpu = Cpu()
    model: Model = Model()
    guests: tuple[Guest, ...] = Field(alias="guest")
    workloads: tuple[Workload, ...] = Field(alias="workload")
    _file: str = PrivateAttr(default="topology")

    @property
    def file(self) -> str:
        """The file that it was read from."""
        return self._file

    def plain(self) -> dict[str, Any]:
        """The same as dicts, lists, strings, numbers and None, keyed as in the file ("guest", "workload", "from")."""
        return self.model_dump(mode="json", by_alias=True)

    def shared_memory_bytes(self) -> int:
        """About how many bytes of shared memory it needs: all RAM and what goes with it. Rather too many."""
        ram = [self.dom0.memory, *(guest.memory for guest in self.guests)]
        beside = [PATHS[guest.path].beside_ram(self.nic.queue, guest.memory) for guest in self.guests]
        ram += [size for size in beside if size]  # device models have what a domain has
        tables = sum(-(-size // PAGE) * TABLE_BYTES_PER_PAGE for size in ram)
        engines = self.nic.engines + 1  # and Dom0's
        return sum(ram) + tables + len(ram) * DOMAIN_OVERHEAD + engines * ENGINE_OVERHEAD + BASE_OVERHEAD
