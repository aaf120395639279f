"""What the hypervisor does for contexts when the NIC has been started again."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hyp.control import Refused, Reply
from hyp.monitor.contexts import Contexts
from hyp.monitor.daemons import Daemon, Toolstack


class Restarted(Daemon):
    """A NIC that has been started again, and closes all contexts but the first when it has carried out call `at`."""

    def __init__(self, at: str) -> None:
        super().__init__("the NIC")
        self.at, self.asked, self.closes = at, list[tuple[str, int]](), list[Callable[[], None]]()

    async def ask(self, op: str, /, fds: tuple[int, ...] = (), **args: Any) -> Reply:
        self.asked.append((op, args["context"]))
        if op == "context_destroy" and args["context"] == 2 and self.at == "context_create":
            raise Refused("ENODEV", "it could not be made")
        if op == self.at and self.closes:
            self.closes.pop()()
        return Reply({}, [])


@pytest.mark.parametrize("at", ["context_create", "context_start", "filter_change"])
def test_a_context_that_is_closed_while_a_new_nic_is_given_it_is_destroyed_there(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who closes one does not wait for a NIC that is long in coming. Its descriptors are closed then: nobody is woken by them."""

    async def create(contexts: Contexts, domain: Any, context: Any, ask: Any) -> None:
        await ask("context_create", context=context.number)

    monkeypatch.setattr(Contexts, "_create", create)
    woken: list[int] = []

    def context(number: int) -> Any:
        upcall = SimpleNamespace(wake=woken.append)
        return SimpleNamespace(
            number=number, ready=True, started={}, upcall=upcall, completion_fd=number, queue=0, generation=number
        )  # fmt: skip

    async def main() -> list[tuple[str, int]]:
        nic = Restarted(at)
        contexts = Contexts("", "", cast(Any, nic), Toolstack())
        domains = {k: SimpleNamespace(domid=k, name=str(k), contexts={k: context(k)}) for k in (1, 2)}
        cast(Any, contexts)._contexts, cast(Any, contexts)._filters = dict(domains), {0xA: 1, 0xB: 2}

        def close() -> None:
            domains[2].contexts.clear()
            del cast(Any, contexts)._contexts[2], cast(Any, contexts)._filters[0xB]

        def later() -> None:  # the first call is for the first one
            nic.closes.append(close)

        nic.closes += [close] if at == "filter_change" else [close, later]
        await contexts.resume()
        assert nic.ready.done()
        return nic.asked

    asked = asyncio.run(main())
    if at == "filter_change":
        assert [number for op, number in asked if op == at] == [1]
        assert woken == [1, 2]
    else:
        assert asked[-2:] == [("context_destroy", 2), ("filter_change", 1)]
        assert woken == [1]


@pytest.mark.parametrize("error", [BlockingIOError(11, "a lease"), Refused("ENODEV", "cut off"), None], ids=str)
def test_a_context_that_cannot_go_on_holds_up_nobody_elses(error: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest may have a lease on what the NIC is to map (fcntl(2), F_SETLEASE), or may have cut its memory off."""
    asked: list[str] = []

    async def create(contexts: Contexts, domain: Any, context: Any, ask: Any) -> None:
        asked.append(domain.name)
        if domain.name == "evil" and error is not None:
            raise error

    monkeypatch.setattr(Contexts, "_create", create)
    woken: list[int] = []

    def context(number: int) -> Any:
        upcall = SimpleNamespace(wake=woken.append)
        return SimpleNamespace(number=number, ready=True, started=None, upcall=upcall, completion_fd=number, queue=0)

    async def main() -> None:
        nic = Daemon("the NIC")
        contexts = Contexts("", "", cast(Any, nic), Toolstack())
        domains = [SimpleNamespace(domid=k, name=name, contexts={k: context(k)}) for k, name in ((1, "evil"), (2, "anna"))]
        cast(Any, contexts)._contexts = {one.domid: one for one in domains}
        await contexts.resume()
        assert nic.ready.done()

    asyncio.run(main())
    assert (asked, woken) == (["evil", "anna"], [1, 2])
