"""A topology's workloads: run one after the other (`runner`), each turned into a record (`record`)."""

from lab.workloads.load import WIRE, Workload, describe
from lab.workloads.runner import HYPERVISOR, MOST_SAID, PeerDied, Runner, WorkloadError

__all__ = ["HYPERVISOR", "MOST_SAID", "WIRE", "PeerDied", "Runner", "Workload", "WorkloadError", "describe"]
