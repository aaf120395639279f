"""Regions of shared memory that the keeper holds, so that they outlive who made them: the hypervisor hands them over, by key."""

import os

from hyp.control import Answer, Refused, close_all


class Held:
    """By key, such as "nic.counters": read-only descriptors."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}

    def hold(self, key: str, fds: list[int]) -> None:
        """Keep a region, in the place of the one that had this key."""
        if len(fds) != 1:
            close_all(fds)
            raise Refused("EINVAL", f"hold {key}: {len(fds)} descriptors, not one")
        self.let_go(key)
        self._fds[key] = fds[0]

    def let_go(self, key: str) -> None:
        """Do not keep it any more; nothing happens if it is not kept."""
        if key in self._fds:
            os.close(self._fds.pop(key))

    def ending_in(self, suffix: str) -> Answer:
        """Keys of those that end in `suffix`, and fds: the regions."""
        keys = [key for key in self._fds if key.endswith(suffix)]
        return Answer(keys, fds=[self._fds[key] for key in keys])
