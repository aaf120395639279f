"""Reading the counters of all processes of a topology."""

from hyp.abi.counters import COUNTERS_BYTES, read_rows
from hyp.control import close_all
from hyp.memory import Mapping


class CounterReader:
    """Maps the counters of all processes; they stay readable when their writers are stopped or dead."""

    def __init__(self, pages: dict[str, Mapping]) -> None:
        self._pages = pages

    @classmethod
    def adopt(cls, keys: list[str], fds: list[int]) -> "CounterReader":
        """A reader of what the keeper's operation `held` gave for ".counters". Closes the descriptors."""
        names = [key.removesuffix(".counters") for key in keys]
        try:
            return cls({name: Mapping(fd, COUNTERS_BYTES, writable=False) for name, fd in zip(names, fds, strict=True)})
        finally:
            close_all(fds)

    def raw(self) -> list[bytes]:
        """All that is counted, as it lies in memory: equal to what it was before if nothing was counted in between."""
        return [bytes(page.array.data) for page in self._pages.values()]

    def read(self) -> dict[str, dict[str, int]]:
        """``{"process/row": {column: count}}``."""
        return {
            f"{process}/{row}": counts
            for process, page in self._pages.items()
            for row, counts in read_rows(page.array.data).items()
        }
