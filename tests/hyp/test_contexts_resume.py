"""What the hypervisor does for contexts when the NIC has been started again."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hyp.control import Refused
from hyp.monitor.contexts import Contexts
from hyp.monitor.daemons import Daemon, Toolstack


@pytest.mark.parametrize("error", [BlockingIOError(11, "a lease"), Refused("EFAULT", "cut off"), None], ids=str)
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
