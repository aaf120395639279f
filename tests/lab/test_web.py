"""The page's server: what it tells viewers, what it refuses, and what its controls do to a running topology."""

import json
import re
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.support.labs import GUESTS, ROOT, launch, start, staying_up, topology_file, wait_until
from tests.support.pages import Served, page_of, served_at
from tests.support.patience import patient
from tests.support.tiers import tiered

pytestmark = pytest.mark.usefixtures("warm")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with page_of(topology_file(tmp_path_factory.mktemp("web"), "web", GUESTS)) as served:
        yield served


# --- who may ask -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}", ""]
)
@pytest.mark.parametrize("path", ["/", "/stream", "/metrics", "/assets/page.js"])
def test_other_hosts_are_refused(page: Served, host: str, path: str) -> None:
    status, _, said = page.ask("GET", path, headers={"Host": host.format(port=page.port)})
    assert status == 403, said


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]", "LocalHost"])
def test_loopback_has_several_names(page: Served, name: str) -> None:
    assert page.ask("GET", "/", headers={"Host": f"{name}:{page.port}"})[0] == 200


OTHERS = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "https://127.0.0.1:{port}"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
]


@pytest.mark.parametrize("headers", tiered(OTHERS, [OTHERS[0], OTHERS[-1]]))
def test_other_pages_are_refused(page: Served, headers: dict[str, str]) -> None:
    headers = {name: value.format(port=page.port) for name, value in headers.items()}
    assert page.ask("GET", "/stream", headers=headers)[0] == 403
    assert page.do("stop", headers, process="dom0")[0] == 403
    assert "T" not in state_of(page, "dom0")


@pytest.mark.parametrize("token", tiered([None, "", "x", "é" * 32, "{token}x"], [None, "{token}x"]))
def test_changing_things_takes_the_token(page: Served, token: str | None) -> None:
    given = {} if token is None else {"X-Lab-Token": token.format(token=page.token)}
    body = json.dumps({"process": "dom0"}).encode()
    status, _, said = page.ask("POST", "/do/stop", body, {name: value.encode().decode("latin-1") for name, value in given.items()})
    assert status == 401, said
    assert state_of(page, "dom0") != "T"


def test_looking_changes_nothing(page: Served) -> None:
    for method in ("GET", "HEAD"):
        assert page.ask(method, "/do/stop?process=dom0", headers={"X-Lab-Token": page.token})[0] == 405
    assert page.ask("PUT", "/", headers={"X-Lab-Token": page.token})[0] == 405
    assert page.ask("GET", "/assets/../app.py")[0] == 404
    assert page.ask("GET", "/assets/%2e%2e/app.py")[0] == 404


def test_the_page_runs_what_this_server_gives_and_nothing_else(page: Served) -> None:
    for path in ("/", "/assets/page.js", "/metrics", "/nothing"):
        _, headers, _ = page.ask("GET", path)
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Frame-Options"] == "DENY"
    _, _, text = page.ask("GET", "/")
    assert b"://" not in text
    assert b"style=" not in text


# --- what is seen ----------------------------------------------------------------------------------------------------


def state_of(page: Served, process: str) -> str:
    with page.stream() as stream:
        stream.next()
        return str(stream.next()["sample"]["processes"][process]["state"])


def test_viewers_are_told_the_whole_and_then_what_is_new(page: Served) -> None:
    with page.stream() as one, page.stream() as other:
        for stream in (one, other):
            view = stream.next()
            assert view["kind"] == "whole"
            assert {"wide", "narrow"} == view["drawings"].keys()
            assert view["events"][0]["kind"] == "up"
            view = stream.next()
            assert view["kind"] == "sample"
            assert "picture" not in view
            assert {cost["guest"] for cost in view["costs"]} == {"anna", "bert", "carl", "dora"}


def test_a_viewer_that_does_not_read_holds_up_nobody(page: Served) -> None:
    with ExitStack() as opened:
        for _ in range(4):
            sock = opened.enter_context(socket.create_connection(("127.0.0.1", page.port), timeout=patient(30)))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            sock.sendall(f"GET /stream HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\n\r\n".encode())
        with page.stream() as stream:
            times = [stream.next()["sample"]["time"] for _ in range(3)]
        assert sorted(set(times)) == times
        gone = opened.enter_context(socket.create_connection(("127.0.0.1", page.port), timeout=patient(30)))
        gone.sendall(f"GET /stream HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\n\r\n".encode())
        gone.recv(100)
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a browser that goes away
    with page.stream() as stream:
        assert stream.next()["kind"] == "whole"


# --- controls --------------------------------------------------------------------------------------------------------


def fps(view: dict[str, Any], hop: str) -> float:
    figures = view["sample"]["hops"].get(hop)
    return figures["fps"] or 0 if figures else 0


@pytest.mark.long
def test_the_proof(page: Served) -> None:
    for guest in ("anna", "carl"):
        assert page.do("traffic", guest=guest, to="wire", frame=256, pps=5000)[0] == 200
    try:
        with page.stream() as stream:
            view = stream.until(lambda view: fps(view, "anna>dom0") > 0 and fps(view, "carl>nic") > 0)
            assert {one["guest"] for one in view["streams"]} == {"anna", "carl"}
            assert page.do("stop", process="dom0")[0] == 200
            stream.until(
                lambda view: (
                    view["sample"]["processes"]["dom0"]["state"] == "T" and fps(view, "dom0>nic") == 0 < fps(view, "carl>nic")
                )
            )
            assert page.do("continue", process="dom0")[0] == 200
            stream.until(lambda view: fps(view, "dom0>nic") > 0)
            assert page.do("traffic", guest="carl", to="dora", frame=1514, pps=100)[0] == 200  # in place of the other
            view = stream.until(lambda view: fps(view, "nic>dora") > 0)
            assert next(one for one in view["streams"] if one["guest"] == "carl")["frame"] == 1514
    finally:
        page.do("continue", process="dom0")
        said = [page.do("quiet", guest=guest) for guest in ("anna", "carl")]
    assert [status for status, _ in said] == [200, 200], said


def test_killing_and_moving(page: Served) -> None:
    with page.stream() as stream:
        first = stream.next()
        assert page.do("kill", process="nic")[0] == 200
        stream.until(lambda view: any(one["kind"] == "restarted" and one["who"] == "nic" for one in view["events"]))
        assert page.do("move", guest="bert", path="bypass")[0] == 200
        view = stream.until(lambda view: view["kind"] == "whole")
        assert next(one for one in view["picture"]["paths"] if one["guest"] == "bert")["path"] == "bypass"
        assert 'data-hop="bert&gt;nic"' in view["drawings"]["wide"] or 'data-hop="bert>nic"' in view["drawings"]["wide"]
        assert first["kind"] == "whole"
        status, said = page.do("move", guest="bert", path="bypass")
        assert status == 409, said
        assert page.do("move", guest="bert", path="split")[0] == 200


def test_prices(page: Served) -> None:
    with page.stream() as stream:
        assert stream.next()["prices"]["hypercall_ns"] == 0
        assert page.do("price", name="hypercall_ns", value=500)[0] == 200
        stream.until(lambda view: view["prices"]["hypercall_ns"] == 500)
        assert page.do("price", name="hypercall_ns", value=0)[0] == 200


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("boot", {}),
        ("close", {}),
        ("stop", {}),
        ("stop", {"process": "keeper"}),
        ("stop", {"process": ["dom0"]}),
        ("stop", {"process": "dom0", "more": 1}),
        ("kill", {"process": "<b>"}),
        ("quiet", {"guest": "anna"}),
        ("quiet", {"guest": {}}),
        ("traffic", {"guest": "zoe", "to": "wire", "frame": 64, "pps": 0}),
        ("traffic", {"guest": "anna", "to": "anna", "frame": 64, "pps": 0}),
        ("traffic", {"guest": "anna", "to": ["wire"], "frame": 64, "pps": 0}),
        ("traffic", {"guest": "anna", "to": "wire", "frame": 1 << 70, "pps": 0}),
        ("traffic", {"guest": "anna", "to": "wire", "frame": "64", "pps": 0}),
        ("traffic", {"guest": "anna", "to": "wire", "frame": None, "pps": 0}),
        ("traffic", {"guest": "anna", "to": "wire", "frame": 64, "pps": -1}),
        ("traffic", {"guest": "anna", "to": "wire", "frame": 64, "pps": True}),
        ("price", {"name": "free_lunch_ns", "value": 1}),
        ("price", {"name": [], "value": 1}),
        ("price", {"name": "hypercall_ns", "value": -1}),
        ("move", {"guest": "anna", "path": "trapped"}),
        ("move", {"guest": "anna", "path": 1}),
        ("offloads", {"guest": "anna", "on": True}),
        ("offloads", {"guest": "zoe", "on": True}),
    ],
)
def test_what_can_not_be_done_is_refused(page: Served, verb: str, arguments: dict[str, Any]) -> None:
    status, said = page.do(verb, **arguments)
    assert status == 409
    assert said["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b"[" * 4000, b" " * 5000 + b"{}"])
def test_what_is_no_json_object_is_refused(page: Served, body: bytes) -> None:
    status, _, said = page.ask("POST", "/do/stop", body, {"X-Lab-Token": page.token})
    assert status in (400, 409), said


TSO = """
import array, fcntl, socket, struct
value = array.array("I", [0x1E, 0])  # ETHTOOL_GTSO, linux/ethtool.h
request = struct.pack("16sQ8x", b"eth0", value.buffer_info()[0])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    fcntl.ioctl(sock, 0x8946, request)  # SIOCETHTOOL
print(value[1])
"""


@pytest.mark.long
@pytest.mark.needs("taps")
def test_offloads_of_a_tap_guest_are_switched_under_its_kernel(tmp_path: Path) -> None:
    guest = '[[guest]]\nname = "alice"\npath = "bypass"\nprogram = "tap"\naddress = "10.0.0.1/24"\n'
    file = topology_file(tmp_path, "offloads", guest)
    with page_of(file) as page, page.stream() as stream:

        def segments() -> str:
            return launch("exec", "--topology", file.stem, "alice", "--", sys.executable, "-c", TSO).stdout.strip()

        assert stream.next()["plain"] == []
        for on, left, plain in ((False, "nothing", ["alice"]), (True, "csum, tso4, tso6", [])):
            status, said = page.do("offloads", guest="alice", on=on)
            assert (status, said.get("done")) == (200, f"alice's kernel leaves to the device: {left}")
            stream.until(lambda view, plain=plain: view["plain"] == plain)
            assert segments() == str(int(on))
        assert page.do("offloads", guest="alice", on="yes")[0] == 409


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_are_openmetrics_and_the_dashboard_asks_for_what_there_is(page: Served) -> None:
    wait_until(lambda: page.ask("GET", "/metrics")[0] == 200, "the first look")
    _, headers, text = page.ask("GET", "/metrics")
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    frames = {sample.labels["hop"]: sample for sample in families["xbl_frames"].samples}
    assert frames["anna>dom0"].labels == {"hop": "anna>dom0", "way": "tx", "guest": "anna", "path": "split"}
    assert frames["dom0>nic"].labels["guest"] == ""
    assert {sample.labels["process"] for sample in families["xbl_process_up"].samples} >= {
        "hyp",
        "dom0",
        "nic",
        "xenstored",
        "anna",
    }
    names = {f"{name}_total" if family.type == "counter" else name for name, family in families.items()}
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert asked
    for expression in asked:
        used = set(re.findall(r"\bxbl_\w+", expression))
        assert used, expression
        assert used <= names, expression


# --- the ends --------------------------------------------------------------------------------------------------------


def test_the_topology_ends_under_a_page(tmp_path: Path) -> None:
    file = topology_file(tmp_path, "web-end", '[[guest]]\nname = "carl"\npath = "bypass"\n')
    with staying_up(file) as (topology, _):
        command = start("web", file.stem, "--port", "0")
        assert command.stdout is not None
        page = served_at([command.stdout.readline()])
        with page.stream() as stream:
            assert stream.next()["kind"] == "whole"
            topology.terminate()
            view = stream.until(lambda view: view["kind"] == "ended")
        assert view["reason"] == f"topology {file.stem} has ended"
        said, _ = command.communicate(timeout=patient(30))
        assert view["reason"] in said
        assert command.returncode == 0


@pytest.mark.long
def test_the_page_ends_and_what_it_stopped_goes_on(tmp_path: Path) -> None:
    file = topology_file(tmp_path, "web-left", '[[guest]]\nname = "carl"\npath = "bypass"\n')
    with staying_up(file):
        command = start("web", file.stem, "--port", "0")
        assert command.stdout is not None
        page = served_at([command.stdout.readline()])
        assert page.do("traffic", guest="carl", to="wire", frame=64, pps=1000)[0] == 200
        assert page.do("stop", process="dom0")[0] == 200
        taken = start("web", file.stem, "--port", str(page.port))
        said, _ = taken.communicate(timeout=patient(30))
        assert f"port {page.port} of 127.0.0.1 is in use" in said
        command.terminate()
        said, _ = command.communicate(timeout=patient(30))
        assert "the topology goes on" in said
        later = start("web", file.stem, "--port", "0")
        assert later.stdout is not None
        again = served_at([later.stdout.readline()])
        with again.stream() as stream:
            stream.until(lambda view: view["sample"]["processes"]["dom0"]["state"] in ("S", "R") and fps(view, "carl>nic") == 0)
        later.terminate()
        later.communicate(timeout=patient(30))


def test_there_is_nothing_to_show() -> None:
    command = start("web", "there-is-none-such", "--port", "0")
    said, _ = command.communicate(timeout=patient(30))
    assert said.startswith("no topology named 'there-is-none-such' is running")
    assert command.returncode == 1
