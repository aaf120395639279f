"""The table of hypercalls: who has which, what their arguments may be, and that docs/hypercalls.md says the same."""

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hyp.abi.domids import DOM0, DOMID_NIC
from hyp.abi.nic import PAGE
from hyp.control import MAX_MESSAGE, Channel, Refused, socketpair
from hyp.monitor import cdna, dma  # noqa: F401  back ends with a hypercall of their own
from hyp.monitor.arguments import Default, Integer
from hyp.monitor.dispatch import HYPERCALLS, Callers
from hyp.monitor.domain import Context, Domain, Registration
from hyp.monitor.event_channels import EventError
from hyp.monitor.hypercalls import calls_for
from hyp.monitor.system import System
from tests.support.control_ends import run

QUEUES = {"sq", "scq", "rq", "rcq", "sq_size", "rq_size"}
OF_EVERY_DOMAIN: dict[str, set[str]] = {
    "domain_info": set(),
    "upcall_create": set(),
    "evtchn_alloc_unbound": {"remote", "upcall"},
    "evtchn_bind_interdomain": {"remote", "remote_port", "upcall"},
    "evtchn_notifier": {"port"},
    "evtchn_status": {"port"},
    "evtchn_close": {"port"},
    "gnttab_setup": {"frames"},
    "mr_register": {"addr", "length", "writable"},
    "mr_deregister": {"key"},
    "context_open": {"upcall", "queue"},
    "context_start": {"context", "features", *QUEUES},
    "context_close": {"context"},
    "emulation_attach": {"interrupts", "answers", *QUEUES},
    "emulation_start": {"features"},
    "cdna_attach": {"context"},
    "dma_attach": {"context"},
}
OF_DOM0_ONLY: dict[str, set[str]] = {
    "toolstack_ready": set(),
    "foreign_view": {"domid"},
    "filter_change": {"domid", "add", "remove"},
    "contexts_settle": {"domid", "sent"},
    "contexts_revoke": {"domid"},
    "spin_limit": {"limit_us"},
}
OF_THE_NIC: dict[str, set[str]] = {
    "nic_register": {"engines", "kept", "mtu"},
    "nic_ready": set(),
    "doorbell_hush": {"context", "generation"},
}

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "hypercalls.md").read_text()
MEMORY = 16 * PAGE
ANNA = 1


@contextmanager
def hypervisor() -> Iterator[System]:
    """The hypervisor's tables with Dom0, the NIC (neither of which is there) and guest anna with one upcall."""
    system = System("hypercalls", "sealed", 1)
    for domid, name in ((DOM0, "dom0"), (DOMID_NIC, "nic"), (ANNA, "anna")):
        system.domains[domid] = Domain(domid, name, "hypercalls", "sealed", MEMORY)
    try:
        call(system, ANNA, "upcall_create")
        yield system
    finally:
        for domain in system.domains.values():
            domain.close()
        system.platform.close()


def call(system: System, domid: int, operation: str, /, **arguments: Any) -> Any:
    """An operation as the channel calls it; what it returns."""
    return calls_for(system, system.domains[domid])[operation](**arguments)


def queues(**other: Any) -> dict[str, Any]:
    return {"sq": PAGE, "scq": 2 * PAGE, "rq": 3 * PAGE, "rcq": 4 * PAGE, "sq_size": 64, "rq_size": 64, **other}


# --- the table -------------------------------------------------------------------------------------------------------


def test_who_has_which_operations() -> None:
    async def main() -> None:
        with hypervisor() as system:
            assert set(calls_for(system, system.domains[ANNA])) == set(OF_EVERY_DOMAIN)
            assert set(calls_for(system, system.domains[DOM0])) == set(OF_EVERY_DOMAIN) | set(OF_DOM0_ONLY)
            assert set(calls_for(system, system.domains[DOMID_NIC])) == set(OF_THE_NIC)
            for domid in (ANNA, DOM0):  # a device model has what its guest's domain has, whoever that is
                model = Domain(domid, "anna.vmm", "hypercalls", "sealed", MEMORY, device_model=True)
                assert set(calls_for(system, model)) == set(OF_EVERY_DOMAIN)

    run(main())


def test_the_table_has_these_operations_with_these_arguments_and_no_others() -> None:
    for callers, expected in zip(Callers, (OF_EVERY_DOMAIN, OF_DOM0_ONLY, OF_THE_NIC), strict=True):
        assert {name: set(row.arguments) for name, row in HYPERCALLS.items() if row.callers is callers} == expected


def test_a_handler_takes_what_its_row_declares() -> None:
    for name, row in HYPERCALLS.items():
        parameters = inspect.signature(row.run).parameters
        named = [p.name for p in parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        assert named[:2] == ["system", "domain"], name
        rest = set(row.arguments) - set(named[2:])
        assert set(named[2:]) <= set(row.arguments), name
        assert rest - {"features"} == (QUEUES if len(named) < len(parameters) else set()), name


# --- the document ----------------------------------------------------------------------------------------------------


def documented(heading: str) -> dict[str, str]:
    """Operation → what the table under `heading` says of its arguments."""
    section = DOCUMENT.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `(\w+)` \|([^|]*)\|", section, re.MULTILINE)
    assert len(dict(rows)) == len(rows) > 0
    return dict(rows)


@pytest.mark.parametrize(("heading", "callers"), [
    ("Operations of every domain", Callers.EVERY_DOMAIN), ("Operations of Dom0 only", Callers.DOM0),
    ("Operations of the NIC", Callers.NIC),
])  # fmt: skip
def test_the_document_lists_the_same_operations_and_arguments(heading: str, callers: Callers) -> None:
    listed = documented(heading)
    assert {name: set(re.findall(r"`(\w+)`", text)) for name, text in listed.items()} == {
        name: set(row.arguments) for name, row in HYPERCALLS.items() if row.callers is callers
    }
    for operation, text in listed.items():
        for argument, low, high in re.findall(r"`(\w+)`, (\d+) to (\d+)", text):
            kind = HYPERCALLS[operation].arguments[argument]
            assert (kind.kind if isinstance(kind, Default) else kind) == Integer(int(low), int(high)), operation


# --- the dispatcher --------------------------------------------------------------------------------------------------

UPCALLS = {"interrupts": 0, "answers": 0}
BAD: list[tuple[int, str, dict[str, Any], str, str]] = [
    (ANNA, "domain_info", {"x": 1}, "EINVAL", "domain_info: there is no argument 'x'"),
    (ANNA, "domain_info", {"system": 1}, "EINVAL", "no argument 'system'"),
    (ANNA, "domain_info", {"operation": 1}, "EINVAL", "no argument 'operation'"),
    (ANNA, "evtchn_status", {}, "EINVAL", "evtchn_status: argument port is missing"),
    (ANNA, "evtchn_status", {"port": "1"}, "EINVAL", "port is '1', not an integer in [1, 4095]"),
    (ANNA, "evtchn_status", {"port": True}, "EINVAL", "port is True, not an integer"),
    (ANNA, "evtchn_close", {"port": 1.0}, "EINVAL", "port is 1.0, not an integer"),
    (ANNA, "evtchn_notifier", {"port": [1]}, "EINVAL", "port is [1], not an integer"),
    (ANNA, "evtchn_alloc_unbound", {"remote": 7, "upcall": 0}, "ESRCH", "remote is 7: there is no such domain"),
    (ANNA, "evtchn_alloc_unbound", {"remote": {}, "upcall": 0}, "ESRCH", "remote is {}"),
    (ANNA, "evtchn_alloc_unbound", {"remote": True, "upcall": 0}, "ESRCH", "remote is True"),
    (ANNA, "evtchn_alloc_unbound", {"remote": 0, "upcall": 1}, "EINVAL", "upcall is 1, not an integer in [0, 0]"),
    (ANNA, "evtchn_alloc_unbound", {"remote": 0, "upcall": -1}, "EINVAL", "upcall is -1"),
    (ANNA, "evtchn_bind_interdomain", {"remote": 0, "remote_port": 0, "upcall": 0}, "EINVAL", "remote_port is 0"),
    (ANNA, "gnttab_setup", {"frames": 17}, "EINVAL", "frames is 17, not an integer in [1, 16]"),
    (ANNA, "mr_register", {"addr": 1, "length": PAGE, "writable": True}, "EINVAL", "addr is 1, not a multiple of 4096"),
    (ANNA, "mr_register", {"addr": PAGE, "length": MEMORY, "writable": True}, "EINVAL", f"length is {MEMORY}, not"),
    (ANNA, "mr_register", {"addr": 0, "length": 0, "writable": True}, "EINVAL", "length is 0"),
    (ANNA, "mr_register", {"addr": 0, "length": PAGE, "writable": 1}, "EINVAL", "writable is 1, not a boolean"),
    (ANNA, "mr_deregister", {"key": []}, "ENOENT", "key is []: it has no such memory region"),
    (ANNA, "context_open", {"upcall": None}, "EINVAL", "upcall is None"),
    (ANNA, "context_open", {"upcall": 0, "queue": 8}, "EINVAL", "queue is 8, not an integer in [0, 7]"),
    (ANNA, "context_close", {"context": 0}, "ENODEV", "context is 0: it has no such context"),
    (ANNA, "context_start", {"context": 0, **queues()}, "ENODEV", "context is 0"),
    (ANNA, "emulation_attach", {**UPCALLS, **queues(sq_size=65)}, "EINVAL", "sq_size is 65, not a power of two"),
    (ANNA, "emulation_attach", {**UPCALLS, **queues(rq_size=32)}, "EINVAL", "rq_size is 32"),
    (ANNA, "emulation_attach", {**UPCALLS, **queues(rcq=100)}, "EINVAL", "rcq is 100, not a multiple of 4096"),
    (ANNA, "emulation_attach", {**UPCALLS, **queues(rq=MEMORY - PAGE, rq_size=512)}, "EINVAL", "rq is 61440"),
    (DOM0, "foreign_view", {"domid": 9}, "ESRCH", "domid is 9"),
    (DOM0, "filter_change", {"domid": 9, "add": [], "remove": []}, "ESRCH", "domid is 9"),
    (DOM0, "filter_change", {"domid": 0, "add": "02", "remove": []}, "EINVAL", "add is '02', not a list of MAC addresses"),
    (DOM0, "filter_change", {"domid": 0, "add": [], "remove": [5]}, "EINVAL", "remove is [5], not a list of MAC addresses"),
    (DOM0, "filter_change", {"domid": 0, "add": ["02:00"], "remove": []}, "EINVAL", "add is ['02:00']"),
    (DOM0, "contexts_settle", {"domid": 9, "sent": True}, "ESRCH", "domid is 9"),
    (DOM0, "contexts_settle", {"domid": 1, "sent": 1}, "EINVAL", "sent is 1"),
    (DOM0, "spin_limit", {"limit_us": 1001}, "EINVAL", "limit_us is 1001, not an integer in [0, 1000]"),
    (DOMID_NIC, "doorbell_hush", {"context": 128, "generation": 1}, "EINVAL", "context is 128"),
    (DOMID_NIC, "doorbell_hush", {"context": 1, "generation": -1}, "EINVAL", "generation is -1"),
    (DOMID_NIC, "nic_register", {"engines": 9}, "EINVAL", "engines is 9, not an integer in [1, 8]"),
]  # fmt: skip


@pytest.mark.parametrize(("domid", "operation", "arguments", "error", "reason"), BAD)
def test_a_bad_argument_is_refused_by_name(domid: int, operation: str, arguments: dict[str, Any], error: str, reason: str) -> None:
    async def main() -> None:
        with hypervisor() as system:
            name, upcalls = system.domains[domid].name, len(system.domains[domid].upcalls)
            with pytest.raises(Refused) as refused:
                call(system, domid, operation, **arguments)
            assert refused.value.name == error
            assert str(refused.value).startswith(f"domain {domid} ({name}): {operation}: ")
            assert reason in str(refused.value)
            assert len(system.domains[domid].upcalls) == upcalls
            assert system.domains[domid].registrations == {}
            assert "gnttab" not in system.domains[domid].regions()

    run(main())


def test_each_argument_of_each_operation_is_checked() -> None:
    """Nothing is right for no argument at all: what no kind takes is refused wherever it stands."""

    async def main() -> None:
        with hypervisor() as system:
            anna = system.domains[ANNA]
            anna.registrations[0] = Registration(0, PAGE, True)
            anna.contexts[0] = cast(Context, SimpleNamespace(features=0))
            for name, row in HYPERCALLS.items():
                caller = {Callers.EVERY_DOMAIN: ANNA, Callers.DOM0: DOM0, Callers.NIC: DOMID_NIC}[row.callers]
                right: dict[str, Any] = {
                    **dict.fromkeys(row.arguments, 0), **queues(), "length": PAGE, "writable": True, "port": 1, "remote_port": 1,
                    "frames": 1, "engines": 1, "kept": PAGE, "add": [], "remove": [],
                }  # fmt: skip
                for wrong in row.arguments:
                    arguments = {argument: right[argument] for argument in row.arguments}
                    arguments[wrong] = {"no": "thing"}
                    with pytest.raises(Refused, match=f"{name}: {wrong} is"):
                        call(system, caller, name, **arguments)

    run(main())


def test_what_is_right_passes() -> None:
    async def main() -> None:
        with hypervisor() as system:
            port = call(system, ANNA, "evtchn_alloc_unbound", remote=DOM0, upcall=0)["port"]
            assert call(system, ANNA, "evtchn_status", port=port) == {"status": "unbound"}
            with pytest.raises(EventError, match="not bound yet"):
                call(system, ANNA, "evtchn_notifier", port=port)
            key = call(system, ANNA, "mr_register", addr=MEMORY - PAGE, length=PAGE, writable=False)["key"]
            await call(system, ANNA, "mr_deregister", key=key)
            with pytest.raises(Refused, match="no such memory region"):
                call(system, ANNA, "mr_deregister", key=key)
            assert call(system, ANNA, "gnttab_setup", frames=16).value == {"refs": 16 * 512}
            assert call(system, DOM0, "foreign_view", domid=ANNA).value == {"memory": MEMORY, "refs": 16 * 512}
            with pytest.raises(Refused, match="has no open context") as refused:
                await call(system, DOM0, "filter_change", domid=ANNA, add=["02:00:00:00:00:01"], remove=[])
            assert refused.value.name == "ENODEV"
            system.nic.gone()
            with pytest.raises(Refused, match="the NIC is gone") as refused:
                await call(system, ANNA, "context_open", upcall=0, queue=0)
            assert refused.value.name == "ENODEV"

    run(main())


def test_an_error_about_a_long_value_is_short_enough_to_be_sent() -> None:
    async def main() -> None:
        with hypervisor() as system:
            ours, theirs = socketpair()
            server, guest = Channel(ours, calls_for(system, system.domains[ANNA])), Channel(theirs)
            long = "\x00" * (MAX_MESSAGE - 200)  # four times as long when it is printed
            for operation, arguments in (
                ("evtchn_status", {"port": long}), ("mr_deregister", {"key": long}), ("domain_info", {long: 1}), (long, {}),
            ):  # fmt: skip
                with pytest.raises(Refused) as refused:
                    await guest.call(operation, **arguments)
                assert len(str(refused.value)) < 200
            guest.close()
            server.close()

    run(main())
