"""All tables of a topology file but ``[[guest]]`` (guest.py), and the whole of them.

A check that concerns two keys of one table stands at the key that a user would correct, and looks only at sound others.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    field_validator,
)
from pydantic import ValidationInfo as Info

from hyp.abi.sizes import DEFAULT_MTU, MAX_GBPS, MAX_MTU, MAX_QUEUES, MIN_GBPS, PAGE
from hyp.paths import PATHS
from lab.cpus import checked_nic_cpus
from lab.schema.guest import Guest
from lab.schema.values import (
    BASE_OVERHEAD,
    DOMAIN_OVERHEAD,
    ENGINE_OVERHEAD,
    MAX_COUNT,
    TABLE_BYTES_PER_PAGE,
    Address,
    Address6,
    Cpus,
    Engines,
    File,
    Frame,
    Mac,
    PriceOf,
    Queues,
    Ram,
    Speed,
    Table,
    Times,
    checked_interface,
    checked_name,
    checked_power_of_two,
    checked_spin,
)
from lab.schema.words import MIB


class Memory(Table):
    """``[memory]``"""

    backing: Literal["posix", "sealed"] = "posix"


def _only_with(modes: tuple[str, ...], value: Any, info: Info) -> Any:
    """Refuse a key of the wire's that the mode has no use for."""
    if value is not None and info.data.get("mode", modes[0]) not in modes:
        listed = " or ".join(f'"{mode}"' for mode in modes)
        raise ValueError(f"has a meaning with mode = {listed} only")
    return value


class Wire(Table):
    """``[nic.wire]``: what is at the other end of the NIC's cable. `frame` in bytes; `pps`, `gbps`, `times` 0: no limit."""

    mode: Literal["sink", "reflect", "generate", "replay", "record", "tap"] = "sink"
    mac: Mac = "02:00:00:00:ff:01"
    to: str | None = Field(default=None, validate_default=True)
    frame: Frame = 64
    pps: int = Field(default=0, ge=0, le=10**9)
    gbps: float = Field(default=0.0, ge=0, le=MAX_GBPS, allow_inf_nan=False)
    delay_us: int = Field(default=0, ge=0, le=1_000_000)
    file: File | None = Field(default=None, validate_default=True)
    speed: Speed = "recorded"
    times: Times = 1
    snapped: Literal["pad", "cut", "drop"] = "pad"
    rewrite: dict[Mac, str] = Field(default_factory=dict)
    interface: Annotated[str, AfterValidator(checked_interface)] = "xbl0"
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
        modes = ("generate", "replay") if info.field_name == "to" else ("generate",)
        return _only_with(modes, value, info)

    @field_validator("file", "speed", "times", "snapped", "rewrite")
    @classmethod
    def _only_with_a_file(cls, value: Any, info: Info) -> Any:
        modes = ("replay", "record") if info.field_name == "file" else ("replay",)
        if value is None and (mode := info.data.get("mode")) in modes:
            raise ValueError(f'is required with mode = "{mode}": the capture file')
        return _only_with(modes, value, info)

    @field_validator("rewrite")
    @classmethod
    def _one_destination(cls, rewrite: dict[str, str], info: Info) -> dict[str, str]:
        if rewrite and info.data.get("to") is not None:
            raise ValueError("has no meaning beside `to`, to which all frames go")
        return rewrite


class Nic(Table):
    """``[nic]``: `pause_us` in microseconds, `storm_pps` in frames a second, `queue` in descriptors, `mtu` in bytes."""

    engines: Engines = 1
    mtu: int = Field(default=DEFAULT_MTU, ge=DEFAULT_MTU, le=MAX_MTU)
    pause_us: int = Field(default=20_000, ge=0, le=1_000_000)
    queue: Annotated[int, Field(ge=64, le=4096), AfterValidator(checked_power_of_two)] = 256
    storm_pps: int = Field(default=0, ge=0, le=1_000_000_000)
    wire: Wire = Wire()


class Dom0(Table):
    """``[dom0]``: `memory` in bytes, `ageing_s` in seconds; `max_queues` is what netback offers each vif."""

    memory: Ram = 32 * MIB
    ageing_s: int = Field(default=300, ge=1, le=1_000_000)
    max_queues: Queues = MAX_QUEUES


class Spin(Table):
    """``[spin]``: how long a loop may look for work before it sleeps, in microseconds."""

    limit_us: Annotated[int | Literal["auto"], BeforeValidator(checked_spin)] = "auto"


class Supervisor(Table):
    """``[supervisor]``: whether the lab's own processes are started again, and how often, when they die (docs/faults.md)."""

    restart: bool = True
    restarts: int = Field(default=5, ge=1, le=1000)
    within_s: float = Field(default=10.0, gt=0, le=86_400)


class Cpu(Table):
    """``[cpu]``: who runs where, by CPU number, and who may spin (lab/cpus.py). None: who runs where the others are not."""

    hyp: Cpus | None = None
    dom0: Cpus | None = None
    nic: Annotated[list[int] | list[list[int]], BeforeValidator(checked_nic_cpus)] | None = None
    guests: dict[str, Cpus] = Field(default_factory=dict)
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


class Workload(Table):
    """One ``[[workload]]``: for `seconds`, or until `frames` frames (kind "rr": round trips); `frame` in bytes.

    Kind "replay": a capture file's frames, `times` times over; `seconds` may end it before.
    """

    kind: Literal["stream", "rr", "replay"]
    from_: str = Field(alias="from")
    to: str
    frame: Frame = 64
    payload: Literal["full", "header"] = "full"
    file: File | None = Field(default=None, validate_default=True)
    speed: Speed = "recorded"
    times: Times = 1
    snapped: Literal["pad", "cut", "drop"] = "pad"
    seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    frames: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = Field(default=None, validate_default=True)

    @field_validator("to")
    @classmethod
    def _not_self(cls, to: str, info: Info) -> str:
        if to == info.data.get("from_"):
            raise ValueError(f"{to!r} is the sender itself")
        return to

    @field_validator("file", "speed", "times", "snapped")
    @classmethod
    def _only_with_replay(cls, value: Any, info: Info) -> Any:
        kind = info.data.get("kind", "replay")
        if value is None and kind == "replay" and "kind" in info.data:
            raise ValueError('is required with kind = "replay": the capture file')
        if value is not None and kind != "replay":
            raise ValueError('has a meaning with kind = "replay" only')
        return value

    @field_validator("frame", "payload")
    @classmethod
    def _not_with_replay(cls, value: Any, info: Info) -> Any:
        if info.data.get("kind") == "replay":
            raise ValueError('has no meaning with kind = "replay": the frames are the file\'s')
        return value

    @field_validator("frames")
    @classmethod
    def _one_limit(cls, frames: int | None, info: Info) -> int | None:
        if info.data.get("kind") == "replay":
            if frames is not None:
                raise ValueError("a replay ends by its `times`, or after `seconds`")
            if info.data.get("times") == 0 and info.data.get("seconds", 1) is None:
                raise ValueError("a replay without end (times = 0) needs `seconds`")
            return None
        if "seconds" in info.data and (frames is None) == (info.data["seconds"] is None):
            given = "neither is" if frames is None else "both are"
            raise ValueError(f"exactly one of seconds and frames says when a workload ends; {given} given")
        return frames


class Topology(Table):
    """A sound topology, every default filled in."""

    name: Annotated[str, AfterValidator(checked_name)]
    confined: bool = False
    memory: Memory = Memory()
    nic: Nic = Nic()
    dom0: Dom0 = Dom0()
    spin: Spin = Spin()
    supervisor: Supervisor = Supervisor()
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
        tables = self.model_dump(mode="json", by_alias=True)
        for guest in tables["guest"]:
            guest["confined"] |= self.confined
        return tables

    def shared_memory_bytes(self) -> int:
        """About how many bytes of shared memory it needs: all RAM and what goes with it. Rather too many."""
        ram = [self.dom0.memory, *(guest.memory for guest in self.guests)]
        beside = [PATHS[guest.path].beside_ram(self.nic.queue, guest.memory) for guest in self.guests]
        ram += [size for size in beside if size]  # device models have what a domain has
        tables = sum(-(-size // PAGE) * TABLE_BYTES_PER_PAGE for size in ram)
        engines = self.nic.engines + 1  # and Dom0's
        return sum(ram) + tables + len(ram) * DOMAIN_OVERHEAD + engines * ENGINE_OVERHEAD + BASE_OVERHEAD
