/* A network front end: both rings, their pages and grants (tx.c, rx.c), and how it finds its back end, parts from it and meets it
 * again (connect.c). Who owns what:
 *
 *   page 1, 2 of RAM          the rings; granted to Domain 0, writable, from connect until disconnect
 *   TX_SLOTS pages, then      a send page for each request id; granted for reading from netfront_send_* until it is answered
 *   RX_SLOTS pages            a page for each slot of the receive ring; granted for writing from its request to its response
 *   port, notify_fd           the event channel; from connect until disconnect
 *
 * Nothing here is for more than one thread. The back end is believed as Linux's netfront believes it: a slot is copied, the copy
 * is checked, and what cannot be takes the device down (`down`, and `why`). */
#ifndef NETFRONT_H
#define NETFRONT_H

#include <stdbool.h>

#include "xen.h"

enum { DOM0 = 0 }; /* where the back end is */
enum { MOST_FRAME = XEN_NETIF_MAX_TX_SIZE, MOST_RX_SLOTS = 2 * XEN_NETIF_NR_SLOTS_MIN };

enum rings {
    FRESH, /* initialised anew, at `start` */
    KEPT,  /* as they are: the back end takes them up at rsp_prod, and what is unanswered is served */
};

struct features {
    bool sg, csum, gso;
};

/* What is left undone in a frame: its TCP checksum, and cutting it into segments. */
struct offload {
    bool blank;         /* the checksum field holds the pseudo-header's sum */
    bool validated;     /* received: nobody need check it */
    uint8_t gso_type;   /* XEN_NETIF_GSO_TYPE_* */
    uint16_t gso_size;  /* bytes of payload in a segment */
};

struct counts {
    uint64_t tx_frames, tx_slots, tx_extras, tx_okay, tx_error, tx_null, tx_dropped, unanswered;
    uint64_t rx_frames, rx_slots, rx_extras, rx_chains, rx_gso, rx_blank, rx_error;
    uint64_t notifications, suppressed, wakeups, connects;
};

struct netfront {
    uint8_t *ram;
    grant_entry_v1_t *grants;
    int upcall; /* an epoll descriptor: where the back end's notifications arrive */
    uint64_t upcall_number;
    char front[64], back[128]; /* directories in xenstore */
    uint8_t mac[6];

    struct features without;  /* never to be accepted */
    struct features features; /* accepted */
    RING_IDX start;           /* where the indices of fresh rings begin */

    bool connected, down;
    char why[256];
    uint64_t port;
    int notify_fd;
    netif_tx_front_ring_t tx;
    netif_rx_front_ring_t rx;
    uint16_t free_ids[TX_SLOTS];
    unsigned free_count, extras; /* extra infos are requests without an id */
    bool busy[TX_SLOTS];
    unsigned awaited; /* responses that have to be there before the next frame is: more than 1 if part of it is */
    uint8_t whole[MOST_FRAME + 1];
    struct counts counts;
};

/* --- connect.c. What goes wrong between the two ends is in `why`, and in xenstore's error node. --- */

void netfront_create(struct netfront *nf); /* finds the device; ends the program if there is none */
bool netfront_connect(struct netfront *nf, enum rings rings);
bool netfront_disconnect(struct netfront *nf, enum rings rings, bool restart); /* `restart`: without a word, by Initialising */
void netfront_close(struct netfront *nf); /* for good, and without much patience */
void netfront_follow(struct netfront *nf); /* the back end's state has changed */
void netfront_down(struct netfront *nf, const char *why);

/* --- tx.c --- */

unsigned netfront_room(const struct netfront *nf); /* slots that can be filled now */
unsigned netfront_pending(const struct netfront *nf);
uint8_t *netfront_page(struct netfront *nf, size_t length); /* where the next frame of one slot is to be written */
void netfront_send_page(struct netfront *nf, size_t length, struct offload offload); /* it has been */
unsigned netfront_slots(size_t length, size_t slot, struct offload offload);
void netfront_send_chain(struct netfront *nf, const uint8_t *frame, size_t length, size_t slot, struct offload offload);
void netfront_push(struct netfront *nf); /* publish what was sent; notify the back end if it has asked for that */
unsigned netfront_reap(struct netfront *nf); /* take in answers. Returns their number */
void netfront_forget_sends(struct netfront *nf); /* the back end has let go of what it has not answered */

/* --- rx.c --- */

typedef void received(void *context, uint8_t *frame, size_t length, const struct offload *offload);

void netfront_post(struct netfront *nf); /* ask for a frame in every page that is free */
unsigned netfront_receive(struct netfront *nf, unsigned most, received *handle, void *context); /* returns the number of frames */
void netfront_forget_receives(struct netfront *nf);

/* --- grants.c: what both directions share --- */

/* Before sleeping: ask to be notified of a frame, and of `room` answers (0: none). True if there is something to do already. */
bool netfront_arm(struct netfront *nf, unsigned room);

void netfront_notify(struct netfront *nf, bool due);
void grant_access(struct netfront *nf, grant_ref_t ref, unsigned page, bool readonly);
bool end_access(struct netfront *nf, grant_ref_t ref); /* false: the page is still in use */

enum { TX_RING = 1, RX_RING, TX_POOL, RX_POOL = TX_POOL + TX_SLOTS, PAGES = RX_POOL + RX_SLOTS }; /* pages of RAM */
enum { FIRST_REF = GNTTAB_NR_RESERVED_ENTRIES - TX_RING, REFS = FIRST_REF + PAGES };
#define REF(page) ((grant_ref_t)(FIRST_REF + (page))) /* each page has a reference of its own */

#endif
