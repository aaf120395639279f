"""The last look at a topology as OpenMetrics, for Prometheus and others. Pure, of a picture, counters and what the kernel said.

Counters are read from where they are counted, never summed up by us: after a restart some begin again at 0, which is what a scraper
expects. Labels: `hop`, `way` ("tx": from guest to wire), and of a hop that is one guest's alone `guest` and `path`, else "".
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from lab.ledger import Snapshot
from lab.view.picture import Hop, Picture, rows_of
from lab.view.samples import STOPPED, Sample, Use

CONTENT_TYPE = CONTENT_TYPE_LATEST
HOP = ("hop", "way", "guest", "path")
COUNTED = (
    ("xbl_frames", "frames", "Frames that took a hop."),
    ("xbl_frame_bytes", "bytes", "Bytes of frames that took a hop."),
    ("xbl_notifications", "notifications", "Eventfd writes that announced frames of a hop."),
    ("xbl_notifications_suppressed", "suppressed", "Batches at a hop whose reader had not asked to be notified."),
    ("xbl_wakeups", "wakeups", "Sleeps ended by an event, of the loop at the far end of a hop."),
)
CALLS = {True: "trap", False: "hypercall"}


def exposition(picture: Picture, counts: Snapshot, sample: Sample, use: Mapping[str, Use], status: Mapping[str, Any]) -> bytes:
    """The text that `/metrics` answers."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Look(picture, counts, sample, use, status))
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
    return text


class _Look(Collector):
    def __init__(
        self, picture: Picture, counts: Snapshot, sample: Sample, use: Mapping[str, Use], status: Mapping[str, Any]
    ) -> None:
        self._picture, self._counts, self._sample, self._use, self._status = picture, counts, sample, use, status
        self._paths = {path["guest"]: path["path"] for path in picture["paths"]}

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield InfoMetricFamily("xbl_topology", "The topology that is looked at.", {"name": self._picture["name"]})
        up = GaugeMetricFamily("xbl_up", "1: all processes that are to run do.")
        up.add_metric([], float(self._status.get("state") == "up"))
        yield up
        for name, figure, about in COUNTED:
            yield self._counted(name, figure, about)
        yield self._calls()
        yield self._named("xbl_drops", "drops", "reason", "Frames dropped at a hop, by the drop's name.")
        yield self._named("xbl_faults", "faults", "kind", "Protocol faults of a peer at a hop, by name.")
        yield self._in_flight()
        yield from self._processes()

    def _labels(self, hop: Hop) -> list[str]:
        guest = hop["guest"] or ""
        return [hop["id"], hop["way"], guest, self._paths.get(guest, "")]

    def _sum(self, hop: Hop, figure: str, columns: Iterable[str] | None = None) -> int | None:
        """Of all rows of a figure. What a guest says of itself may be anything: below 0 it is 0. None: the hop has none such."""
        feed = hop["feeds"].get(figure)
        if feed is None:
            return None
        wanted = feed["columns"] if columns is None else columns
        return sum(max(self._counts[row].get(column, 0), 0) for row in rows_of(feed, self._counts) for column in wanted)

    def _counted(self, name: str, figure: str, about: str) -> Metric:
        family = CounterMetricFamily(name, about, labels=HOP)
        for hop in self._picture["hops"]:
            if hop["carries"] == "frames" and (n := self._sum(hop, figure)) is not None:
                family.add_metric(self._labels(hop), n)
        return family

    def _calls(self) -> Metric:
        family = CounterMetricFamily("xbl_calls", "Calls of the hypervisor at a hop, one a batch.", labels=(*HOP, "kind"))
        for hop in self._picture["hops"]:
            if (n := self._sum(hop, "calls")) is not None:
                family.add_metric([*self._labels(hop), CALLS["trap" in hop["marks"]]], n)
        return family

    def _named(self, name: str, figure: str, label: str, about: str) -> Metric:
        """Of columns that are told by name; those that never counted are left out."""
        family = CounterMetricFamily(name, about, labels=(*HOP, label))
        for hop in self._picture["hops"]:
            for column in hop["feeds"].get(figure, {"columns": ()})["columns"]:
                if n := self._sum(hop, figure, [column]):
                    family.add_metric([*self._labels(hop), column.partition("_")[2]], n)
        return family

    def _in_flight(self) -> Metric:
        family = GaugeMetricFamily("xbl_in_flight_frames", "Frames handed over at a hop and not yet taken.", labels=HOP)
        for hop in self._picture["hops"]:
            n = self._sample["hops"].get(hop["id"], {}).get("in_flight")
            if n is not None:
                family.add_metric(self._labels(hop), n)
        return family

    def _processes(self) -> Iterator[Metric]:
        names = ("process", "role")
        up = GaugeMetricFamily("xbl_process_up", "1: the process is there.", labels=names)
        stopped = GaugeMetricFamily("xbl_process_stopped", "1: the process stands still, by a signal.", labels=names)
        restarts = CounterMetricFamily("xbl_process_restarts", "Times that the process was started again.", labels=names)
        cpu = CounterMetricFamily("xbl_process_cpu_seconds", "CPU time of all of the process's threads.", labels=names)
        for process in self._status.get("processes", []):
            labels = [process["name"], process["role"]]
            use = self._use.get(process["name"])
            there = use is not None and use.state not in ("", "Z")
            up.add_metric(labels, float(there))
            restarts.add_metric(labels, process["restarts"])
            if use is not None and there:
                stopped.add_metric(labels, float(use.state in STOPPED))
                cpu.add_metric(labels, use.cpu_ns / 1e9)
        yield from (up, stopped, restarts, cpu)
