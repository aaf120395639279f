/* To send: requests, extra infos, and their responses. */
#include <stdio.h>

#include "netfront.h"

enum { COLOUR = 64, COLOURS = 15 }; /* short frames begin at different places of their pages, and so in different cache sets */

unsigned netfront_room(const struct netfront *nf)
{
    unsigned slots = RING_FREE_REQUESTS(&nf->tx);
    return slots < nf->free_count ? slots : nf->free_count;
}

unsigned netfront_pending(const struct netfront *nf)
{
    return nf->tx.req_prod_pvt - nf->tx.rsp_cons;
}

static uint16_t offset_of(uint16_t id, size_t length)
{
    return length <= PAGE - COLOUR * COLOURS ? id % COLOURS * COLOUR : 0;
}

/* Write the next request: `length` bytes at `offset` of the page of the next free id, of a frame or fragment of `size` bytes. */
static void put_request(struct netfront *nf, uint16_t offset, uint16_t size, uint16_t flags)
{
    uint16_t id = nf->free_ids[--nf->free_count];
    nf->busy[id] = true;
    grant_access(nf, REF(TX_POOL + id), TX_POOL + id, true);
    *RING_GET_REQUEST(&nf->tx, nf->tx.req_prod_pvt) =
        (netif_tx_request_t){.gref = REF(TX_POOL + id), .offset = offset, .flags = flags, .id = id, .size = size};
    nf->tx.req_prod_pvt++;
    nf->counts.tx_slots++;
}

static void put_extra(struct netfront *nf, struct offload offload)
{
    netif_extra_info_t extra = {.type = XEN_NETIF_EXTRA_TYPE_GSO};
    extra.u.gso.size = offload.gso_size;
    extra.u.gso.type = offload.gso_type;
    memcpy(RING_GET_REQUEST(&nf->tx, nf->tx.req_prod_pvt), &extra, sizeof extra);
    nf->tx.req_prod_pvt++;
    nf->extras++;
    nf->counts.tx_extras++;
}

static uint16_t flags_of(struct offload offload)
{
    uint16_t flags = offload.blank ? NETTXF_csum_blank | NETTXF_data_validated : 0;
    return flags | (offload.gso_type ? NETTXF_extra_info : 0);
}

uint8_t *netfront_page(struct netfront *nf, size_t length)
{
    uint16_t id = nf->free_ids[nf->free_count - 1];
    return nf->ram + (size_t)(TX_POOL + id) * PAGE + offset_of(id, length);
}

void netfront_send_page(struct netfront *nf, size_t length, struct offload offload)
{
    uint16_t id = nf->free_ids[nf->free_count - 1];
    put_request(nf, offset_of(id, length), (uint16_t)length, flags_of(offload));
    if (offload.gso_type)
        put_extra(nf, offload);
    nf->counts.tx_frames++;
}

unsigned netfront_slots(size_t length, size_t slot, struct offload offload)
{
    return (unsigned)((length + slot - 1) / slot) + (offload.gso_type != 0);
}

void netfront_send_chain(struct netfront *nf, const uint8_t *frame, size_t length, size_t slot, struct offload offload)
{
    for (size_t done = 0; done < length;) {
        size_t size = length - done < slot ? length - done : slot;
        uint16_t id = nf->free_ids[nf->free_count - 1], offset = offset_of(id, size);
        uint16_t flags = (done == 0 ? flags_of(offload) : 0) | (done + size < length ? NETTXF_more_data : 0);
        memcpy(nf->ram + (size_t)(TX_POOL + id) * PAGE + offset, frame + done, size);
        put_request(nf, offset, (uint16_t)(done == 0 ? length : size), flags); /* the first one says how long the whole is */
        if (done == 0 && offload.gso_type)
            put_extra(nf, offload);
        done += size;
    }
    nf->counts.tx_frames++;
}

void netfront_push(struct netfront *nf)
{
    int due;
    RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&nf->tx, due);
    netfront_notify(nf, due);
}

/* Free the id that a response names. False: it is none that the back end has, or it still uses its page. */
static bool take_back(struct netfront *nf, const netif_tx_response_t *response)
{
    if (response->id >= TX_SLOTS || !nf->busy[response->id] || !end_access(nf, REF(TX_POOL + response->id)))
        return false;
    nf->busy[response->id] = false;
    nf->free_ids[nf->free_count++] = response->id;
    return true;
}

unsigned netfront_reap(struct netfront *nf)
{
    RING_IDX cons = nf->tx.rsp_cons, prod = *(volatile RING_IDX *)&nf->tx.sring->rsp_prod;
    xen_rmb(); /* responses after the index */
    if (prod - cons > nf->tx.req_prod_pvt - cons) {
        netfront_down(nf, "the back end has answered more transmit requests than there are");
        return 0;
    }
    unsigned answers = prod - cons;
    for (; cons != prod; cons++) {
        netif_tx_response_t response;
        RING_COPY_RESPONSE(&nf->tx, cons, &response);
        if (response.status == NETIF_RSP_NULL && nf->extras > 0) { /* answers an extra info */
            nf->extras--;
            nf->counts.tx_null++;
            continue;
        }
        if (!take_back(nf, &response)) {
            netfront_down(nf, "the back end has answered a transmit request that it does not have, or still uses");
            break;
        }
        nf->counts.tx_okay += response.status == NETIF_RSP_OKAY;
        nf->counts.tx_error += response.status == NETIF_RSP_ERROR;
        nf->counts.tx_dropped += response.status == NETIF_RSP_DROPPED;
    }
    nf->tx.rsp_cons = cons;
    return answers;
}

void netfront_forget_sends(struct netfront *nf)
{
    nf->counts.unanswered += netfront_pending(nf) - nf->extras;
    nf->free_count = nf->extras = 0;
    for (uint16_t id = TX_SLOTS; id-- > 0;) { /* so that the first is taken first */
        if (nf->busy[id])
            end_access(nf, REF(TX_POOL + id));
        nf->busy[id] = false;
        nf->free_ids[nf->free_count++] = id;
    }
}
