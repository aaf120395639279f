"""What the lab raises when it cannot do what it was asked for: all of it is a `LabError`."""


class LabError(Exception):
    """Something asked of a lab could not be done; the message names what, and says why.

    Raised itself when a topology cannot be started or one of its processes fails. More special are `lab.topology.TopologyError`,
    `lab.rundir.TopologyExists` and `lab.workloads.WorkloadError`.
    """
