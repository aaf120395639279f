"""``[[guest]]``: its keys, and what is to be true of them together.

A check that concerns two keys of one table stands at the key that a user would correct, and looks only at sound others.
"""

from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    field_validator,
)
from pydantic import ValidationInfo as Info

from domu.programs.table import program_of, those
from hyp.abi.features import OFFLOADS
from hyp.abi.sizes import DEFAULT_MTU, MAX_MTU
from hyp.net.addresses import checked_gateway
from hyp.paths import GRANT_MODES, IOMMU_FRONT_ENDS, PATHS, Attachment
from lab.schema.values import (
    MIN_IPV6_MTU,
    Address,
    Address6,
    Mac,
    Queues,
    Ram,
    Table,
    checked_guest_name,
    checked_offloads,
    checked_program,
    checked_rate,
)
from lab.schema.words import MIB, suggest

RENAMED: Final = {"persistent_grants": 'true is grants = "persistent" now'}
"""Keys that there were, and what takes their place."""


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

    name: Annotated[str, AfterValidator(checked_guest_name)]
    path: str
    mac: Mac
    memory: Ram = 16 * MIB
    program: Annotated[str | OwnProgram, BeforeValidator(checked_program)] = "traffic"
    address: Address | None = Field(default=None, validate_default=True)
    mtu: int = Field(default=DEFAULT_MTU, ge=576, le=MAX_MTU)
    address6: Address6 | None = None
    link_local: bool = False
    gateway: str | None = None
    gateway6: str | None = None
    grants: str = "copy"
    rate: Annotated[str, AfterValidator(checked_rate)] | None = None
    offloads: Annotated[tuple[str, ...], Field(strict=False), AfterValidator(checked_offloads)] = tuple(OFFLOADS)
    iommu: str = "persistent"
    queues: Queues = 1
    batches: bool = True
    trunk: bool = False
    restart: bool = False
    confined: bool = False

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

    @field_validator("grants", "rate", "trunk")
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
