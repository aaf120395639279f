"""The toolstack's side of bypass: who gets a NIC context, with which MAC address. Asked at set-up, never later."""

from typing import Any

from hyp.control import Refused


class Toolstack:
    """Policy from the topology file."""

    def __init__(self, guests: list[dict[str, Any]]) -> None:
        self._guests = {int(guest["domid"]): guest for guest in guests}

    def context_authorize(self, domid: int) -> dict[str, str]:
        """The MAC address of the context that `domid` may have. Refused if its path is not bypass."""
        guest = self._guests.get(domid)
        if guest is None or guest["path"] != "bypass":
            name = f" ({guest['name']})" if guest else ""
            raise Refused("EPERM", f"the toolstack gives domain {domid}{name} no NIC context: its path is not bypass")
        return {"mac": str(guest["mac"])}

    def emulation_authorize(self, domid: int) -> dict[str, str]:
        """The MAC address of the emulated NIC that `domid` may have. Refused if its path is not trapped."""
        guest = self._guests.get(domid)
        if guest is None or guest["path"] != "trapped":
            name = f" ({guest['name']})" if guest else ""
            raise Refused("EPERM", f"the toolstack gives domain {domid}{name} no emulated NIC: its path is not trapped")
        return {"mac": str(guest["mac"])}
