"""The toolstack's side of bypass: who gets a NIC context, with which MAC address. Asked at set-up, never later."""

from typing import Any

from hyp.control import Refused

OWN_CONTEXT = ("bypass", "native")
"""Paths on which a guest drives a context of its own. `native` stands for no virtualization at all: nothing is checked."""


class Toolstack:
    """Policy from the topology file."""

    def __init__(self, guests: list[dict[str, Any]]) -> None:
        self._guests = {int(guest["domid"]): guest for guest in guests}

    def context_authorize(self, domid: int) -> dict[str, Any]:
        """The context that `domid` may have: its MAC address, and if the IOMMU passes it through. Refused for other paths."""
        guest = self._guests.get(domid)
        if guest is None or guest["path"] not in OWN_CONTEXT:
            name = f" ({guest['name']})" if guest else ""
            raise Refused(
                "EPERM", f"the toolstack gives domain {domid}{name} no NIC context: its path is not {' or '.join(OWN_CONTEXT)}"
            )
        return {"mac": str(guest["mac"]), "passthrough": guest["path"] == "native"}

    def emulation_authorize(self, domid: int) -> dict[str, Any]:
        """The emulated NIC that `domid` may have: its MAC address. Refused if its path is not trapped."""
        guest = self._guests.get(domid)
        if guest is None or guest["path"] != "trapped":
            name = f" ({guest['name']})" if guest else ""
            raise Refused("EPERM", f"the toolstack gives domain {domid}{name} no emulated NIC: its path is not trapped")
        return {"mac": str(guest["mac"]), "passthrough": False}
