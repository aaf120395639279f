"""The roles of NIC and Dom0, which can be told to end their channel to the hypervisor, as a fault in it would."""

from typing import Any

import dom0.domain
import nic.device
from hyp.process import Process


async def main(process: Process, config: dict[str, Any]) -> None:
    """Be the NIC or Dom0."""
    honest, hypercalls = {"nic": nic.device, "dom0": dom0.domain}[process.role], process.hypercalls

    def heard(*arguments: Any, **options: Any) -> Any:
        channel = hypercalls(*arguments, **options)
        process.serve("hang_up", channel.close)
        return channel

    process.hypercalls = heard  # type: ignore[method-assign]
    await honest.main(process, config)
