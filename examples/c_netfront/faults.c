#include "faults.h"

enum fault {
    CUT_OFF, NO_LAST, EXTRA_TYPE, EXTRA_MORE, GSO_TYPE, GSO_SIZE, EMPTY, OVER_PAGE, SIZES, HEADER, GRANT, FLAGS, LONG,
    LATE_EXTRA, OVERRUN,
};
const char *const fault_names[] = {
    "cut-off", "no-last", "extra-type", "extra-more", "gso-type", "gso-size", "empty", "over-page", "sizes", "header", "grant", "flags",
    "long", "late-extra", "overrun", NULL,
};

static netif_tx_request_t *slot(struct netfront *nf, RING_IDX index)
{
    return RING_GET_REQUEST(&nf->tx, index);
}

void send_spoiled(struct netfront *nf, unsigned fault, const uint8_t *frame, size_t length)
{
    struct offload gso = {.blank = true, .gso_type = XEN_NETIF_GSO_TYPE_TCPV4, .gso_size = 1448};
    RING_IDX first = nf->tx.req_prod_pvt;
    netfront_send_chain(nf, frame, length, fault == LONG ? length / (XEN_NETIF_NR_SLOTS_MIN + 1) : (length + 2) / 3, gso);
    RING_IDX last = nf->tx.req_prod_pvt - 1;
    netif_extra_info_t *extra = (netif_extra_info_t *)slot(nf, first + 1); /* then the other two fragments */
    switch ((enum fault)fault) {
    case CUT_OFF: /* the last request says that there is another one */
        slot(nf, last)->flags |= NETTXF_more_data;
        break;
    case NO_LAST: /* the extra info that was announced is not there */
        nf->tx.req_prod_pvt = first + 1;
        break;
    case EXTRA_TYPE:
        extra->type = XEN_NETIF_EXTRA_TYPE_MAX;
        break;
    case EXTRA_MORE: /* the request after it is taken for one more */
        extra->flags |= XEN_NETIF_EXTRA_FLAG_MORE;
        nf->extras++; /* so the request after it is answered as one */
        break;
    case GSO_TYPE:
        extra->u.gso.type = XEN_NETIF_GSO_TYPE_TCPV6 + 1;
        break;
    case GSO_SIZE:
        extra->u.gso.size = 0;
        break;
    case EMPTY:
        slot(nf, last)->size = 0;
        break;
    case OVER_PAGE:
        slot(nf, last)->offset = PAGE - 1;
        break;
    case SIZES: /* the others are longer than the whole */
        slot(nf, first)->size = 60;
        break;
    case HEADER: /* there is no Ethernet header in the first one */
        slot(nf, first)->size -= (uint16_t)((length + 2) / 3 - 8);
        break;
    case GRANT:
        slot(nf, last)->gref = REFS;
        break;
    case FLAGS:
        slot(nf, first)->flags |= 0x8000;
        break;
    case LONG:
        break;
    case LATE_EXTRA: /* only the first one may announce extra infos */
        slot(nf, first + 2)->flags |= NETTXF_extra_info;
        break;
    case OVERRUN: /* an index that ran away */
        nf->tx.sring->req_prod = nf->tx.rsp_cons + TX_SLOTS + 1;
        netfront_notify(nf, true);
        return;
    }
    netfront_push(nf);
}
