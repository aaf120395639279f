/* Received: requests for whole pages, and their responses. A response stands in the slot of its request, so a slot's number is its
 * page's, and its id. A frame is a response for each page that it fills, the first with its flags; an extra info takes the place of
 * the response after the first. */
#include <stdio.h>

#include "netfront.h"

static uint16_t slot_of(RING_IDX index)
{
    return (uint16_t)(index & (RX_SLOTS - 1));
}

void netfront_post(struct netfront *nf)
{
    int due;
    while (!RING_FULL(&nf->rx)) {
        uint16_t id = slot_of(nf->rx.req_prod_pvt);
        grant_access(nf, REF(RX_POOL + id), RX_POOL + id, false);
        *RING_GET_REQUEST(&nf->rx, nf->rx.req_prod_pvt) = (netif_rx_request_t){.id = id, .gref = REF(RX_POOL + id)};
        nf->rx.req_prod_pvt++;
    }
    RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&nf->rx, due);
    netfront_notify(nf, due);
}

/* What the responses from `rsp_cons` on say of one frame. */
struct frame {
    unsigned slots;  /* responses, extra infos included */
    unsigned extras;
    bool sound;
    struct offload offload;
    uint8_t *bytes;
    size_t length;
};

/* The extra infos from response `cons` on. Returns how many; 0: they are not all there. */
static unsigned look_at_extras(struct netfront *nf, RING_IDX cons, RING_IDX prod, struct frame *frame)
{
    netif_extra_info_t extra;
    unsigned n = 0;
    do {
        if (cons + n == prod || n == MOST_RX_SLOTS)
            return 0;
        _Static_assert(sizeof extra == sizeof(netif_rx_response_t), "an extra info takes the place of a response");
        netif_rx_response_t copy;
        RING_COPY_RESPONSE(&nf->rx, cons + n, &copy);
        memcpy(&extra, &copy, sizeof extra);
        n++;
        if (extra.type == XEN_NETIF_EXTRA_TYPE_GSO && extra.u.gso.size > 0) {
            frame->offload.gso_type = extra.u.gso.type;
            frame->offload.gso_size = extra.u.gso.size;
        } else {
            frame->sound = false; /* nothing else has been accepted */
        }
    } while (extra.flags & XEN_NETIF_EXTRA_FLAG_MORE);
    return n;
}

/* Look at the next frame. True if it is there as a whole. Its bytes are where they have arrived, or put together if in fragments. */
static bool look(struct netfront *nf, RING_IDX prod, struct frame *frame)
{
    RING_IDX cons = nf->rx.rsp_cons;
    netif_rx_response_t response;
    *frame = (struct frame){.sound = true};
    do {
        if (cons + frame->slots == prod)
            return nf->awaited = frame->slots + 1, false;
        bool first = frame->slots == 0;
        uint16_t id = slot_of(cons + frame->slots);
        RING_COPY_RESPONSE(&nf->rx, cons + frame->slots, &response);
        frame->slots++;
        if (response.id != id || (response.status > 0 && response.offset + response.status > PAGE) ||
            frame->slots > MOST_RX_SLOTS)
            return netfront_down(nf, "the back end has answered a receive request as none can be"), false;
        if (first) {
            frame->offload.blank = response.flags & NETRXF_csum_blank;
            frame->offload.validated = response.flags & NETRXF_data_validated;
            if (response.flags & NETRXF_extra_info) {
                frame->extras = look_at_extras(nf, cons + 1, prod, frame);
                if (frame->extras == 0 && prod - cons > MOST_RX_SLOTS)
                    return netfront_down(nf, "the back end has sent extra infos without an end"), false;
                if (frame->extras == 0)
                    return nf->awaited = prod - cons + 1, false;
                frame->slots += frame->extras;
            }
        }
        size_t size = response.status > 0 ? (size_t)response.status : 0;
        uint8_t *bytes = nf->ram + (size_t)(RX_POOL + id) * PAGE + response.offset;
        frame->sound = frame->sound && size > 0 && frame->length + size <= MOST_FRAME;
        if (first)
            frame->bytes = bytes;
        if (frame->sound && (!first || response.flags & NETRXF_more_data)) {
            memcpy(nf->whole + frame->length, bytes, size);
            frame->bytes = nf->whole;
        }
        frame->length += size;
    } while (response.flags & NETRXF_more_data);
    return true;
}

static bool take_back(struct netfront *nf, unsigned slots)
{
    for (; slots > 0; slots--, nf->rx.rsp_cons++)
        if (!end_access(nf, REF(RX_POOL + slot_of(nf->rx.rsp_cons))))
            return netfront_down(nf, "the back end still uses a page that it has filled"), false;
    return true;
}

unsigned netfront_receive(struct netfront *nf, unsigned most, received *handle, void *context)
{
    RING_IDX prod = *(volatile RING_IDX *)&nf->rx.sring->rsp_prod;
    xen_rmb(); /* responses after the index */
    if (prod - nf->rx.rsp_cons > nf->rx.req_prod_pvt - nf->rx.rsp_cons) {
        netfront_down(nf, "the back end has answered more receive requests than there are");
        return 0;
    }
    unsigned frames = 0;
    struct frame frame;
    for (; frames < most && nf->rx.rsp_cons != prod && look(nf, prod, &frame); frames++) {
        nf->awaited = 1;
        if (!take_back(nf, frame.slots))
            break;
        nf->counts.rx_slots += frame.slots - frame.extras;
        nf->counts.rx_extras += frame.extras;
        if (!frame.sound) {
            nf->counts.rx_error++;
            continue;
        }
        nf->counts.rx_frames++;
        nf->counts.rx_chains += frame.slots - frame.extras > 1;
        nf->counts.rx_gso += frame.offload.gso_type != 0;
        nf->counts.rx_blank += frame.offload.blank;
        handle(context, frame.bytes, frame.length, &frame.offload);
    }
    if (frames > 0 && !nf->down)
        netfront_post(nf);
    return frames;
}

void netfront_forget_receives(struct netfront *nf)
{
    for (RING_IDX index = nf->rx.rsp_cons; index != nf->rx.req_prod_pvt; index++)
        end_access(nf, REF(RX_POOL + slot_of(index)));
}
