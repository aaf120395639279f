"""The role of a xenstored that is killed while its topology starts: when the first domain's connection comes."""

import os
import signal
from typing import Any

from dom0.xenstore import process as honest
from hyp.process import Process


async def main(process: Process, config: dict[str, Any]) -> None:
    """Be xenstored, for a while."""
    serve = process.serve

    def dying(op: str, handler: Any, *, takes_fds: bool = False) -> None:
        serve(op, (lambda **_: os.kill(os.getpid(), signal.SIGKILL)) if op == "connect" else handler, takes_fds=takes_fds)

    process.serve = dying  # type: ignore[method-assign]
    await honest.main(process, config)
