"""The programs: how the server of each is started, how its client fills a slice, and what the client's last words say.

A client has an amount of work that lasts as long as the slice by the rate of the last one (iperf3 and redis-benchmark take whole
seconds only), or is interrupted when the slice is over, which wrk takes for the end of its test.

Sources: iperf3(1), wrk's README, redis-benchmark --help, https://nginx.org/en/docs/ngx_core_module.html.
"""

import csv
import io
import json
import re
import shutil
import sys
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, NamedTuple

from bench.peers import PeerError
from bench.programs.ends import Ends
from bench.programs.running import Server, run_client
from lab.accounting import Usage

ROUND_TRIP = Path(__file__).with_name("round_trip.py")
WRK_CONNECTIONS, WRK_RESPONSE, WRK_LONGEST_S = 16, 1024, 60
REDIS_CLIENTS, REDIS_PIPELINE = 10, 16


class Reading(NamedTuple):
    """What a client's run came to: bytes, requests or datagrams that arrived, in how many seconds; `lost` of those sent."""

    moved: float
    seconds: float
    lost: float = 0.0


class Program(ABC):
    """One program. `rate` and `cost` are metrics (bench/report/results.py); `tools`: command → the package that brings it."""

    name: str
    tools: ClassVar[dict[str, str]] = {}
    rate, cost = "requests_per_s", "cpu_us_per_request"
    port: int
    first_per_s = 1e4
    """What the first run of a client reckons with."""
    least = 100
    """Of an amount."""
    interrupted = False
    """The client goes on until it gets SIGINT."""

    def missing(self) -> str | None:
        """None if it is here; else what is not, and how to install it."""
        lacking = [tool for tool in self.tools if shutil.which(tool) is None]
        if not lacking:
            return None
        packages = " ".join(dict.fromkeys(self.tools[tool] for tool in lacking))
        return f"the command {' and '.join(lacking)} is not here: apt install {packages}"

    async def serve(self, ends: Ends) -> Server:
        """Start the server. PeerError if it does not listen."""
        return await Server.start(ends, self.server(ends), self.port)

    @abstractmethod
    def server(self, ends: Ends) -> list[str]:
        """The server's command."""

    @abstractmethod
    def client(self, address: str, seconds: float, amount: int) -> list[str]:
        """The client's, for `seconds` or, if it knows nothing of fractions, an `amount` of what its reading counts."""

    @abstractmethod
    def read(self, output: str, amount: int) -> Reading:
        """What the client says. ValueError, KeyError or the like if it is not what it should be."""

    def figures(self, reading: Reading, cpu_ns: int) -> dict[str, float]:
        """The slice's metrics."""
        return {self.rate: reading.moved / reading.seconds, self.cost: cpu_ns / reading.moved / 1e3}


class IperfTcp(Program):
    """iperf3, TCP, one stream."""

    name = "iperf3 TCP"
    tools: ClassVar[dict[str, str]] = {"iperf3": "iperf3"}
    rate, cost = "gbps", "cpu_ns_per_byte"
    first_per_s = 5e7

    def __init__(self, port: int = 5201) -> None:
        self.port = port

    def server(self, ends: Ends) -> list[str]:
        """See `Program`."""
        return ["iperf3", "-s", "-p", str(self.port), "--forceflush"]

    def client(self, address: str, seconds: float, amount: int) -> list[str]:
        """See `Program`."""
        return ["iperf3", "-c", address, "-p", str(self.port), "-J", "-n", str(amount)]

    def read(self, output: str, amount: int) -> Reading:
        """See `Program`."""
        received = json.loads(output)["end"]["sum_received"]
        return Reading(received["bytes"], received["seconds"])

    def figures(self, reading: Reading, cpu_ns: int) -> dict[str, float]:
        """See `Program`."""
        return {"gbps": reading.moved * 8 / reading.seconds / 1e9, "cpu_ns_per_byte": cpu_ns / reading.moved}


class IperfUdp(IperfTcp):
    """iperf3, UDP, payloads of `size` bytes as fast as the client can; counted where they arrive."""

    rate, cost = "received_per_s", "cpu_us_per_request"
    first_per_s, least = 1e5, 5000  # of fewer the server may have counted none when the client asks

    def __init__(self, size: int, port: int) -> None:
        super().__init__(port)
        self.name, self.size = f"iperf3 UDP {size} B", size

    def client(self, address: str, seconds: float, amount: int) -> list[str]:
        """See `Program`."""
        sized = ["-u", "-b", "0", "-l", str(self.size), "-k", str(amount)]
        return ["iperf3", "-c", address, "-p", str(self.port), "-J", *sized]

    def read(self, output: str, amount: int) -> Reading:
        """See `Program`."""
        received = json.loads(output)["end"]["sum_received"]
        return Reading(received["bytes"] / self.size, received["seconds"], received["lost_packets"])

    def figures(self, reading: Reading, cpu_ns: int) -> dict[str, float]:
        """See `Program`."""
        return Program.figures(self, reading, cpu_ns)


class RoundTrip(Program):
    """A byte there and back on one TCP connection (round_trip.py)."""

    name, port = "TCP round trip 1 B", 5211

    def server(self, ends: Ends) -> list[str]:
        """See `Program`."""
        return [sys.executable, "-SE", str(ROUND_TRIP), "serve", str(self.port)]

    def client(self, address: str, seconds: float, amount: int) -> list[str]:
        """See `Program`."""
        return [sys.executable, "-SE", str(ROUND_TRIP), "ask", address, str(self.port), str(seconds)]

    def read(self, output: str, amount: int) -> Reading:
        """See `Program`."""
        found = json.loads(output)
        return Reading(found["trips"], found["seconds"])


class Nginx(Program):
    """nginx, one worker, answering with 1 kB from memory; wrk, one thread, asks on 16 connections."""

    name, port = "nginx, wrk", 5221
    tools: ClassVar[dict[str, str]] = {"nginx": "nginx-light", "wrk": "wrk"}
    interrupted = True

    async def serve(self, ends: Ends) -> Server:
        """See `Program`. Once it listens it has read its folder, and never looks there again."""
        with tempfile.TemporaryDirectory() as folder:
            places = " ".join(f"{what}_temp_path {folder}/{what};" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
            body = "x" * WRK_RESPONSE
            site = f'server {{ listen {self.port}; keepalive_requests 1000000000; location / {{ return 200 "{body}"; }} }}'
            config = Path(folder, "nginx.conf")
            config.write_text(
                f"daemon off; master_process off; error_log stderr error; pid {folder}/pid;\n"
                f"events {{ }}\nhttp {{ access_log off; {places} {site} }}\n"
            )
            return await Server.start(ends, ["nginx", "-e", "stderr", "-p", folder, "-c", str(config)], self.port)

    def server(self, ends: Ends) -> list[str]:
        """See `serve`."""
        raise NotImplementedError

    def client(self, address: str, seconds: float, amount: int) -> list[str]:
        """See `Program`."""
        often = ["-t", "1", "-c", str(WRK_CONNECTIONS), "-d", f"{WRK_LONGEST_S}s"]
        return ["wrk", *often, f"http://{address}:{self.port}/"]

    def read(self, output: str, amount: int) -> Reading:
        """See `Program`: "  12345 requests in 400.12ms, 14.2MB read"."""
        found = re.search(r"^\s+(\d+) requests in ([\d.]+)(us|ms|s),", output, re.MULTILINE)
        if found is None or "Socket errors" in output or "Non-2xx" in output:
            raise ValueError(output.strip()[-200:])
        return Reading(int(found[1]), float(found[2]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[found[3]])


class Redis(Program):
    """redis: GET of 3 bytes by 10 clients, `pipeline` requests of each at a time."""

    tools: ClassVar[dict[str, str]] = {"redis-server": "redis-server", "redis-benchmark": "redis-tools"}

    def __init__(self, pipeline: int, port: int) -> None:
        self.name = "redis GET" + (f", {pipeline} pipelined" if pipeline > 1 else "")
        self.pipeline, self.port = pipeline, port
        if pipeline > 1:
            self.first_per_s *= pipeline

    async def serve(self, ends: Ends) -> Server:
        """See `Program`. The key that is asked for is there then."""
        server = await super().serve(ends)
        try:
            await run_client(ends, self._benchmark(ends.address, "set", 1))
        except BaseException:
            server.stop()
            raise
        return server

    def server(self, ends: Ends) -> list[str]:
        """See `Program`. It writes nothing anywhere."""
        quiet = ["--save", "", "--appendonly", "no", "--loglevel", "warning", "--protected-mode", "no"]
        return ["redis-server", "--port", str(self.port), "--bind", ends.address, *quiet]

    def _benchmark(self, address: str, what: str, requests: int) -> list[str]:
        amount = ["-n", str(requests), "-P", str(self.pipeline), "-c", str(REDIS_CLIENTS)]
        return ["redis-benchmark", "-h", address, "-p", str(self.port), "-t", what, *amount, "--csv"]

    def client(self, address: str, seconds: float, amount: int) -> list[str]:
        """See `Program`."""
        return self._benchmark(address, "get", amount)

    def read(self, output: str, amount: int) -> Reading:
        """See `Program`: a heading, and "GET","21164.02",…; how many there were its command says."""
        rows = list(csv.DictReader(io.StringIO(output[output.index('"test"') :])))
        return Reading(amount, amount / float(rows[0]["rps"]))


def programs() -> list[Program]:
    """All, in the order in which they are measured."""
    return [
        IperfTcp(), IperfUdp(64, 5202), IperfUdp(1400, 5203), RoundTrip(), Nginx(), Redis(1, 5231), Redis(REDIS_PIPELINE, 5232)
    ]  # fmt: skip


async def once(program: Program, ends: Ends, seconds: float, per_s: float) -> tuple[Reading, Usage]:
    """Run the client for about `seconds`; what it came to, and what it used. PeerError if it has no figure.

    `per_s`: how much of what it sends it is reckoned to send in a second.
    """
    amount = max(program.least, round(per_s * seconds))
    argv = program.client(ends.address, seconds, amount)
    done = await run_client(ends, argv, seconds if program.interrupted else None)
    try:
        reading = program.read(done.output, amount)
        if reading.moved <= 0 or reading.seconds <= 0:
            raise ValueError("nothing arrived")
        return reading, done.usage
    except (ValueError, KeyError, IndexError, TypeError):
        raise PeerError(f"{argv[0]} on {ends.name} gave no figure: {done.output.strip()[-300:] or 'not a word'}") from None
