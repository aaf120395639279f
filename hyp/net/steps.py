"""Steps of a set-up that the kernel may refuse, each with a name, so that its failure says which, why, and what to do."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


class SetupError(Exception):
    """A step failed; the text names the step, the cause and what to do about it."""

    def __init__(self, step: str, cause: str, remedy: str = "") -> None:
        self.step, self.cause, self.remedy = step, cause, remedy
        super().__init__(f"cannot {step}: {cause}" + (f"; {remedy}" if remedy else ""))


@contextmanager
def step(name: str, remedies: dict[int, str] | None = None) -> Iterator[None]:
    """Turn an OSError into a SetupError that names the step; `remedies` by errno."""
    try:
        yield
    except OSError as error:
        remedy = (remedies or {}).get(error.errno or 0, "")
        raise SetupError(name, os.strerror(error.errno or 0), remedy) from error
