"""Our layouts against Xen's public headers, as gcc lays them out: each size, offset, flag and status, to the byte."""

import os
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hyp.abi import domids, evtchn, grant, netif, ring
from hyp.ring import ring_size

# (our module, our constant, C expression): sizes and offsets
TX, RX, EXTRA = "struct netif_tx_request", "struct netif_rx_response", "struct netif_extra_info"
COPY, ENTRY = "struct gnttab_copy", "struct grant_entry_v1"
BIND, UNBOUND, STATUS = "struct evtchn_bind_interdomain", "struct evtchn_alloc_unbound", "struct evtchn_status"
CTRL_REQ, CTRL_RSP = "struct xen_netif_ctrl_request", "struct xen_netif_ctrl_response"
SRING = "struct netif_tx_sring"


def offset(struct: str, field: str) -> str:
    return f"offsetof({struct}, {field})"


OFFSETS: list[tuple[ModuleType, str, str]] = [
    (ring, "REQ_PROD", offset(SRING, "req_prod")),
    (ring, "REQ_EVENT", offset(SRING, "req_event")),
    (ring, "RSP_PROD", offset(SRING, "rsp_prod")),
    (ring, "RSP_EVENT", offset(SRING, "rsp_event")),
    (ring, "PRIVATE", offset(SRING, "pvt")),
    (ring, "FIRST_SLOT", offset(SRING, "ring")),
    (ring, "HEADER_BYTES", offset(SRING, "ring")),
    (ring, "PAGE_BYTES", "1 << XEN_PAGE_SHIFT"),
    (netif, "TX_SLOT_BYTES", "sizeof(((struct netif_tx_sring *)0)->ring[0])"),
    (netif, "RX_SLOT_BYTES", "sizeof(((struct netif_rx_sring *)0)->ring[0])"),
    (netif, "CTRL_SLOT_BYTES", "sizeof(((struct xen_netif_ctrl_sring *)0)->ring[0])"),
    (netif, "TX_REQ_GREF", offset(TX, "gref")),
    (netif, "TX_REQ_OFFSET", offset(TX, "offset")),
    (netif, "TX_REQ_FLAGS", offset(TX, "flags")),
    (netif, "TX_REQ_ID", offset(TX, "id")),
    (netif, "TX_REQ_SIZE", offset(TX, "size")),
    (netif, "TX_RSP_ID", offset("struct netif_tx_response", "id")),
    (netif, "TX_RSP_STATUS", offset("struct netif_tx_response", "status")),
    (netif, "RX_REQ_ID", offset("struct netif_rx_request", "id")),
    (netif, "RX_REQ_PAD", offset("struct netif_rx_request", "pad")),
    (netif, "RX_REQ_GREF", offset("struct netif_rx_request", "gref")),
    (netif, "RX_RSP_ID", offset(RX, "id")),
    (netif, "RX_RSP_OFFSET", offset(RX, "offset")),
    (netif, "RX_RSP_FLAGS", offset(RX, "flags")),
    (netif, "RX_RSP_STATUS", offset(RX, "status")),
    (netif, "EXTRA_BYTES", f"sizeof({EXTRA})"),
    (netif, "EXTRA_TYPE", offset(EXTRA, "type")),
    (netif, "EXTRA_FLAGS", offset(EXTRA, "flags")),
    (netif, "EXTRA_GSO_SIZE", offset(EXTRA, "u.gso.size")),
    (netif, "EXTRA_GSO_TYPE", offset(EXTRA, "u.gso.type")),
    (netif, "EXTRA_GSO_PAD", offset(EXTRA, "u.gso.pad")),
    (netif, "EXTRA_GSO_FEATURES", offset(EXTRA, "u.gso.features")),
    (netif, "EXTRA_MCAST_ADDR", offset(EXTRA, "u.mcast.addr")),
    (netif, "EXTRA_HASH_TYPE", offset(EXTRA, "u.hash.type")),
    (netif, "EXTRA_HASH_ALGORITHM", offset(EXTRA, "u.hash.algorithm")),
    (netif, "EXTRA_HASH_VALUE", offset(EXTRA, "u.hash.value")),
    (netif, "CTRL_REQ_ID", offset(CTRL_REQ, "id")),
    (netif, "CTRL_REQ_TYPE", offset(CTRL_REQ, "type")),
    (netif, "CTRL_REQ_DATA", offset(CTRL_REQ, "data")),
    (netif, "CTRL_RSP_ID", offset(CTRL_RSP, "id")),
    (netif, "CTRL_RSP_TYPE", offset(CTRL_RSP, "type")),
    (netif, "CTRL_RSP_STATUS", offset(CTRL_RSP, "status")),
    (netif, "CTRL_RSP_DATA", offset(CTRL_RSP, "data")),
    (grant, "ENTRY_BYTES", f"sizeof({ENTRY})"),
    (grant, "ENTRY_FLAGS", offset(ENTRY, "flags")),
    (grant, "ENTRY_DOMID", offset(ENTRY, "domid")),
    (grant, "ENTRY_FRAME", offset(ENTRY, "frame")),
    (grant, "COPY_BYTES", f"sizeof({COPY})"),
    (grant, "COPY_SOURCE", offset(COPY, "source.u")),
    (grant, "COPY_SOURCE", offset(COPY, "source.u.ref")),
    (grant, "COPY_SOURCE_DOMID", offset(COPY, "source.domid")),
    (grant, "COPY_SOURCE_OFFSET", offset(COPY, "source.offset")),
    (grant, "COPY_DEST", offset(COPY, "dest.u.gmfn")),
    (grant, "COPY_DEST_DOMID", offset(COPY, "dest.domid")),
    (grant, "COPY_DEST_OFFSET", offset(COPY, "dest.offset")),
    (grant, "COPY_LEN", offset(COPY, "len")),
    (grant, "COPY_FLAGS", offset(COPY, "flags")),
    (grant, "COPY_STATUS", offset(COPY, "status")),
    (evtchn, "ALLOC_UNBOUND_DOM", offset(UNBOUND, "dom")),
    (evtchn, "ALLOC_UNBOUND_REMOTE_DOM", offset(UNBOUND, "remote_dom")),
    (evtchn, "ALLOC_UNBOUND_PORT", offset(UNBOUND, "port")),
    (evtchn, "BIND_INTERDOMAIN_REMOTE_DOM", offset(BIND, "remote_dom")),
    (evtchn, "BIND_INTERDOMAIN_REMOTE_PORT", offset(BIND, "remote_port")),
    (evtchn, "BIND_INTERDOMAIN_LOCAL_PORT", offset(BIND, "local_port")),
    (evtchn, "STATUS_DOM", offset(STATUS, "dom")),
    (evtchn, "STATUS_PORT", offset(STATUS, "port")),
    (evtchn, "STATUS_STATUS", offset(STATUS, "status")),
    (evtchn, "STATUS_VCPU", offset(STATUS, "vcpu")),
    (evtchn, "STATUS_PEER_DOM", offset(STATUS, "u.unbound.dom")),
    (evtchn, "STATUS_PEER_DOM", offset(STATUS, "u.interdomain.dom")),
    (evtchn, "STATUS_PEER_PORT", offset(STATUS, "u.interdomain.port")),
    (evtchn, "PORT_BYTES", "sizeof(evtchn_port_t)"),
    (evtchn, "PORT_BYTES", "sizeof(struct evtchn_send)"),
    (evtchn, "PORT_BYTES", "sizeof(struct evtchn_close)"),
    (evtchn, "PORT_BYTES", "sizeof(struct evtchn_unmask)"),
]

# Our constant: Xen's macro. What is listed by a prefix has Xen's name, in capitals.
MACROS: list[tuple[ModuleType, str, str]] = [
    *((netif, f"TXF_{name.upper()}", f"NETTXF_{name}") for name in ("csum_blank", "data_validated", "more_data")),
    (netif, "TXF_EXTRA_INFO", "NETTXF_extra_info"),
    *((netif, f"RXF_{name.upper()}", f"NETRXF_{name}") for name in ("csum_blank", "data_validated", "more_data")),
    *((netif, f"RXF_{name.upper()}", f"NETRXF_{name}") for name in ("extra_info", "gso_prefix")),
    *((netif, f"RSP_{name}", f"NETIF_RSP_{name}") for name in ("OKAY", "ERROR", "DROPPED", "NULL")),
    (netif, "NR_SLOTS_MIN", "XEN_NETIF_NR_SLOTS_MIN"),
    (netif, "MAX_TX_SIZE", "XEN_NETIF_MAX_TX_SIZE"),
    (netif, "EXTRA_FLAG_MORE", "XEN_NETIF_EXTRA_FLAG_MORE"),
    *((netif, name, f"XEN_NETIF_{name}") for name in vars(netif) if name.startswith(("EXTRA_TYPE_", "GSO_TYPE_"))),
    *((netif, name, f"XEN_NETIF_{name}") for name in vars(netif) if name.startswith(("CTRL_TYPE_", "CTRL_STATUS_", "CTRL_HASH_"))),
    (netif, "CTRLF_GREF_READONLY", "XEN_NETIF_CTRLF_GREF_readonly"),
    (grant, "DOMID_SELF", "DOMID_SELF"),
    (domids, "DOMID_FIRST_RESERVED", "DOMID_FIRST_RESERVED"),
    (grant, "NR_RESERVED_ENTRIES", "GNTTAB_NR_RESERVED_ENTRIES"),
    (grant, "RESERVED_CONSOLE", "GNTTAB_RESERVED_CONSOLE"),
    (grant, "RESERVED_XENSTORE", "GNTTAB_RESERVED_XENSTORE"),
    (grant, "COPY_SOURCE_GREF", "GNTCOPY_source_gref"),
    (grant, "COPY_DEST_GREF", "GNTCOPY_dest_gref"),
    *((grant, name, f"GTF_{name[4:].lower()}") for name in vars(grant) if name.startswith("GTF_")),
    *((grant, name, f"GNTST_{name[6:].lower()}") for name in vars(grant) if name.startswith("GNTST_")),
    *((grant, name, f"GNTTABOP_{name[3:].lower()}") for name in vars(grant) if name.startswith("OP_")),
    *((evtchn, name, f"EVTCHNOP_{name[3:].lower()}") for name in vars(evtchn) if name.startswith("OP_")),
    *((evtchn, name, f"EVTCHNSTAT_{name[6:].lower()}") for name in vars(evtchn) if name.startswith("STATE_")),
    (evtchn, "NR_CHANNELS", "EVTCHN_2L_NR_CHANNELS"),
]

# Our dtype: Xen's structure, and its field for each of ours (None: padding). Size, offsets and field sizes must agree.
GSO: dict[str, str | None] = {
    "type": "type",
    "flags": "flags",
    "size": "u.gso.size",
    "gso_type": "u.gso.type",
    "pad": "u.gso.pad",
}
HASH: dict[str, str | None] = {"hash_type": "u.hash.type", "algorithm": "u.hash.algorithm", "value": "u.hash.value"}
STRUCTS: list[tuple[np.dtype[np.void], str, dict[str, str | None]]] = [
    (netif.TX_REQUEST, TX, {}),
    (netif.TX_RESPONSE, "struct netif_tx_response", {}),
    (netif.RX_REQUEST, "struct netif_rx_request", {}),
    (netif.RX_RESPONSE, RX, {}),
    (netif.EXTRA_GSO, EXTRA, {**GSO, "features": "u.gso.features"}),
    (netif.EXTRA_MCAST, EXTRA, {"addr": "u.mcast.addr"}),
    (netif.EXTRA_HASH, EXTRA, HASH),
    (netif.CTRL_REQUEST, CTRL_REQ, {}),
    (netif.CTRL_RESPONSE, CTRL_RSP, {}),
    (netif.GREF, "struct xen_netif_gref", {}),
    (grant.GRANT_ENTRY, ENTRY, {}),
    (
        grant.GNTTAB_COPY,
        COPY,
        {f"{side}{ours}": f"{side}.{xens}"
         for side in ("source", "dest") for ours, xens in (("", "u"), ("_domid", "domid"), ("_offset", "offset"))},
    ),
    (evtchn.ALLOC_UNBOUND, UNBOUND, {}),
    (evtchn.BIND_INTERDOMAIN, BIND, {"pad": None}),
    (evtchn.PORT_ARGUMENT, "struct evtchn_send", {}),
    (
        evtchn.STATUS,
        STATUS,
        {"pad": None, "peer_dom": "u.interdomain.dom", "peer_pad": None, "peer_port": "u.interdomain.port"},
    ),
]  # fmt: skip

RINGS = {"netif_tx": netif.TX_SLOT_BYTES, "netif_rx": netif.RX_SLOT_BYTES, "xen_netif_ctrl": netif.CTRL_SLOT_BYTES}


def evaluate(expressions: list[str], folder: Path) -> dict[str, int]:
    """The values that gcc gives to C expressions with Xen's headers in front of them."""
    lines = "\n".join(f'printf("%lld\\n", (long long)({expression}));' for expression in expressions)
    source = folder / "layout.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n#include <string.h>\n"
        "#include <xen/io/netif.h>\n#include <xen/event_channel.h>\n"
        f"int main(void) {{\n{lines}\nreturn 0;\n}}\n"
    )
    program = folder / "layout"
    # __XEN_TOOLS__ selects the latest interface version
    subprocess.run(["gcc", "-D__XEN_TOOLS__", "-o", program, source], check=True, env={**os.environ, "LC_ALL": "C"})
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return dict(zip(expressions, map(int, output.split()), strict=True))


needs_xen = pytest.mark.needs("gcc", "xen-headers")


@pytest.fixture(scope="module")
def xen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    expressions = [expression for _, _, expression in OFFSETS + MACROS]
    for dtype, struct, renamed in STRUCTS:
        expressions.append(f"sizeof({struct})")
        for name in dtype.names or ():
            if (field := renamed.get(name, name)) is not None:
                expressions += [offset(struct, field), f"sizeof((({struct} *)0)->{field})"]
    expressions += [f"__CONST_RING_SIZE({name}, 4096)" for name in RINGS]
    return evaluate(list(dict.fromkeys(expressions)), tmp_path_factory.mktemp("abi"))


@needs_xen
@pytest.mark.parametrize("table", [OFFSETS, MACROS], ids=["offsets and sizes", "flags and codes"])
def test_constants(xen: dict[str, int], table: list[tuple[ModuleType, str, str]]) -> None:
    ours = {(module.__name__, name, expression): getattr(module, name) for module, name, expression in table}
    assert ours == {key: xen[key[2]] for key in ours}


@needs_xen
@pytest.mark.parametrize(("dtype", "struct", "renamed"), STRUCTS, ids=[s[1].removeprefix("struct ") for s in STRUCTS])
def test_struct(xen: dict[str, int], dtype: "np.dtype[np.void]", struct: str, renamed: dict[str, str | None]) -> None:
    assert dtype.itemsize == xen[f"sizeof({struct})"]
    assert dtype.fields is not None
    for name, (kind, position, *_) in dtype.fields.items():
        if (field := renamed.get(name, name)) is not None:
            assert (name, position) == (name, xen[offset(struct, field)])
            assert (name, kind.itemsize) == (name, xen[f"sizeof((({struct} *)0)->{field})"])


@needs_xen
def test_ring_header(xen: dict[str, int]) -> None:
    assert ring.SRING.fields is not None
    for name in ("req_prod", "req_event", "rsp_prod", "rsp_event", "pvt"):
        assert (name, ring.SRING.fields[name][1]) == (name, xen[offset(SRING, name)])
    assert ring.SRING.itemsize == xen[offset(SRING, "ring")]


@needs_xen
@pytest.mark.parametrize("name", RINGS)
def test_ring_size(xen: dict[str, int], name: str) -> None:
    assert ring_size(RINGS[name]) == xen[f"__CONST_RING_SIZE({name}, 4096)"]


def test_every_constant_is_compared() -> None:
    """A constant added to a layout is added here too (what is ours, not Xen's, is named)."""
    ours = {
        (grant, "PAGE_BYTES"),
        (grant, "PAGE_SHIFT"),
        *((grant, n) for n in vars(grant) if n.startswith("ACTIVE_")),
    }
    compared = {(module, name) for module, name, _ in OFFSETS + MACROS} | ours
    stated = {
        (module, name)
        for module in (ring, netif, grant, evtchn)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, int)
    }
    assert stated - compared == set()
