"""The public Python API: a lab in a script or a notebook. Its manual is docs/api.md.

    from lab import Lab

    with Lab("my.toml") as lab:               every verb blocks and returns what came out
        lab.stream("anna", "bert", frame=512, seconds=1)

    async with Lab("my.toml") as lab:         the same verbs, awaited
        await lab.stream("anna", "bert", frame=512, seconds=1)

`verbs.py` has the verbs, `face.py` both ways of using them, `thread.py` the event loop behind the blocking one.
"""

from lab.api.face import Lab, Program
from lab.api.verbs import AsyncLab
from lab.errors import LabError
from lab.programs import AsyncProgram
from lab.topology import TopologyError, shipped
from lab.workloads import WorkloadError

__all__ = ["AsyncLab", "AsyncProgram", "Lab", "LabError", "Program", "TopologyError", "WorkloadError", "shipped"]
