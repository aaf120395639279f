"""The toolstack's side of bypass: who gets a NIC context, with which MAC address. Asked at set-up, never later."""

from typing import Any

from hyp.control import Refused
from hyp.paths import PATHS, Attachment


class Toolstack:
    """Policy from the topology file."""

    def __init__(self, guests: list[dict[str, Any]]) -> None:
        self._guests = {int(guest["domid"]): guest for guest in guests}

    def guest(self, domid: int) -> dict[str, Any]:
        """The table of a guest. Refused (ESRCH) if there is none."""
        if domid not in self._guests:
            raise Refused("ESRCH", f"there is no guest {domid}")
        return self._guests[domid]

    def context_authorize(self, domid: int) -> dict[str, Any]:
        """The contexts that `domid` may have: MAC address, if the IOMMU passes them through, how many. Refused for other paths."""
        guest, given = self._given(domid, "NIC context", Attachment.CONTEXT, Attachment.PASSTHROUGH)
        return {"mac": str(guest["mac"]), "passthrough": given is Attachment.PASSTHROUGH, "queues": int(guest["queues"])}

    def emulation_authorize(self, domid: int) -> dict[str, Any]:
        """The emulated NIC that `domid` may have: its MAC address. Refused for other paths."""
        guest, _ = self._given(domid, "emulated NIC", Attachment.EMULATION)
        return {"mac": str(guest["mac"]), "passthrough": False, "queues": 1}

    def _given(self, domid: int, what: str, *attachments: Attachment) -> tuple[dict[str, Any], Attachment]:
        guest = self._guests.get(domid)
        given = PATHS[guest["path"]].attachment if guest else None
        if guest is None or given is None or given not in attachments:
            name = f" ({guest['name']})" if guest else ""
            paths = " or ".join(path for path, spec in PATHS.items() if spec.attachment in attachments)
            raise Refused("EPERM", f"the toolstack gives domain {domid}{name} no {what}: its path is not {paths}")
        return guest, given
