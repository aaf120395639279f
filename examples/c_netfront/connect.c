/* How the device is found, connected, closed and connected again: docs/netif.md, "Connecting" and "States". */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common.h"
#include "hypercall.h"
#include "netfront.h"
#include "xenstore.h"

enum { GRANT_FRAMES = 2 };
#define PATIENCE_NS (30 * SECOND_NS)
#define LAST_PATIENCE_NS (SECOND_NS / 2) /* for each answer, when we are told to end: SIGKILL comes after two seconds */

#define ARGUMENTS(...)                    \
    (const struct argument[]){__VA_ARGS__}, \
        sizeof((const struct argument[]){__VA_ARGS__}) / sizeof(struct argument) /* the array, and how many there are */

_Static_assert(REFS <= GRANT_FRAMES * PAGE / sizeof(grant_entry_v1_t), "each page has a reference of its own");

/* --- xenstore ----------------------------------------------------------------------------------------------------------- */

static void front_node(const struct netfront *nf, const char *name, char *path, size_t room)
{
    snprintf(path, room, "%s/%s", nf->front, name);
}

static bool says_one(const struct netfront *nf, const char *name)
{
    char path[sizeof nf->back + 40], value[8];
    snprintf(path, sizeof path, "%s/%s", nf->back, name);
    return xenstore_read(path, value, sizeof value) == 0 && strcmp(value, "1") == 0;
}

/* A node that is missing, or that may no longer be read, is XenbusStateUnknown. */
static XenbusState back_state(const struct netfront *nf)
{
    char path[sizeof nf->back + 8], value[8];
    snprintf(path, sizeof path, "%s/state", nf->back);
    if (xenstore_read(path, value, sizeof value) != 0 || value[0] < '0' || value[0] > '8' || value[1] != '\0')
        return XenbusStateUnknown;
    return (XenbusState)(value[0] - '0');
}

static bool set_state(struct netfront *nf, XenbusState state)
{
    char path[sizeof nf->front + 8], value[2] = {(char)('0' + state), '\0'};
    front_node(nf, "state", path, sizeof path);
    return xenstore_write(&(struct node){path, value}, 1) == 0;
}

/* Wait for one of two states. Returns which it is; another one if the time is up, or xenstored is gone. */
static XenbusState wait_for(const struct netfront *nf, XenbusState one, XenbusState other, int64_t patience_ns)
{
    int64_t deadline = now_ns() + patience_ns;
    for (;;) {
        XenbusState state = back_state(nf);
        int64_t left = deadline - now_ns();
        if (state == one || state == other || left <= 0 || !xenstore_is_there() || told_to_end)
            return state;
        xenstore_listen(left);
    }
}

void netfront_down(struct netfront *nf, const char *why)
{
    char path[sizeof nf->front + 16], text[sizeof nf->why + 8];
    if (nf->down)
        return;
    nf->down = true;
    if (nf->why != why)
        snprintf(nf->why, sizeof nf->why, "%s", why);
    snprintf(path, sizeof path, "error/%s/error", nf->front); /* as xenbus_dev_error */
    snprintf(text, sizeof text, "%d %s", EIO, nf->why);
    xenstore_write(&(struct node){path, text}, 1);
}

/* The back end is not in the state that was waited for. */
static bool in_vain(struct netfront *nf, XenbusState wanted, XenbusState seen)
{
    const char *refused = seen == XenbusStateClosing || seen == XenbusStateClosed
                              ? "it refuses; why is in its log, and under error/ in Domain 0's home"
                              : "it did not come in time, or xenstored is gone";
    char why[sizeof nf->why];
    snprintf(why, sizeof why, "%s/state is %d, and %d was waited for: %s", nf->back, seen, wanted, refused);
    netfront_down(nf, why);
    return false;
}

/* --- the device --------------------------------------------------------------------------------------------------------- */

static void *map(int fd, size_t size, const char *what)
{
    void *mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED)
        fail("%s: %s", what, strerror(errno));
    close(fd);
    return mapped;
}

static void read_device(const char *name, char *value, size_t room)
{
    char path[128];
    snprintf(path, sizeof path, "device/vif/%s", name);
    int error = xenstore_read(path, value, room);
    if (error)
        fail("xenstore: %s: %s", path, strerror(error));
}

void netfront_create(struct netfront *nf)
{
    struct answer answer;
    char handle[32], path[sizeof nf->back + 8], mac[32];
    int error = xenstore_first("device/vif", handle, sizeof handle);
    if (error)
        fail("xenstore: device/vif: %s. Has this guest path = \"split\"?", strerror(error));
    snprintf(nf->front, sizeof nf->front, "device/vif/%s", handle);
    snprintf(path, sizeof path, "%s/backend", handle);
    read_device(path, nf->back, sizeof nf->back);
    snprintf(path, sizeof path, "%s/mac", handle);
    read_device(path, mac, sizeof mac);
    if (sscanf(mac, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", nf->mac, nf->mac + 1, nf->mac + 2, nf->mac + 3, nf->mac + 4, nf->mac + 5) != 6)
        fail("xenstore: %s is no MAC address", mac);
    snprintf(path, sizeof path, "%s/state", nf->back);
    if ((error = xenstore_watch(path, BACK_END)))
        fail("xenstore: watching %s: %s", path, strerror(error));

    hypercall(&answer, "domain_info", NULL, 0, 3);
    uint64_t memory = answer_number(&answer, "memory");
    if (memory < (uint64_t)PAGES * PAGE)
        fail("this guest has %" PRIu64 " bytes of memory, and its rings and pools take %d", memory, PAGES * PAGE);
    nf->ram = map(answer.fds[0], memory, "the domain's RAM");
    close(answer.fds[1]); /* the lab's counters: what this program counts, it reports */
    close(answer.fds[2]); /* hints for loops that spin, and prices of the model */
    hypercall(&answer, "upcall_create", NULL, 0, 1);
    nf->upcall = answer.fds[0];
    nf->upcall_number = answer_number(&answer, "upcall");
    hypercall(&answer, "gnttab_setup", ARGUMENTS({"frames", GRANT_FRAMES}), 1);
    nf->grants = map(answer.fds[0], (size_t)GRANT_FRAMES * PAGE, "the grant table");
    netfront_forget_sends(nf);
    nf->counts.unanswered = 0;
}

static void begin_rings(struct netfront *nf)
{
    netif_tx_sring_t *tx = (netif_tx_sring_t *)(nf->ram + TX_RING * PAGE);
    netif_rx_sring_t *rx = (netif_rx_sring_t *)(nf->ram + RX_RING * PAGE);
    SHARED_RING_INIT(tx);
    SHARED_RING_INIT(rx);
    tx->req_prod = tx->rsp_prod = rx->req_prod = rx->rsp_prod = nf->start;
    tx->req_event = tx->rsp_event = rx->req_event = rx->rsp_event = nf->start + 1;
    FRONT_RING_ATTACH(&nf->tx, tx, nf->start, PAGE);
    FRONT_RING_ATTACH(&nf->rx, rx, nf->start, PAGE);
}

static int write_nodes(struct netfront *nf)
{
    const struct features *has = &nf->features;
    const struct {
        const char *name;
        uint64_t value;
    } all[] = {
        {"tx-ring-ref", REF(TX_RING)}, {"rx-ring-ref", REF(RX_RING)}, {"event-channel", nf->port},
        {"request-rx-copy", 1}, {"feature-rx-notify", 1},
        {"feature-sg", has->sg}, {"feature-gso-tcpv4", has->gso}, {"feature-gso-tcpv6", has->gso},
        {"feature-no-csum-offload", !has->csum}, {"feature-ipv6-csum-offload", has->csum},
    };
    enum { COUNT = sizeof all / sizeof *all };
    char paths[COUNT][sizeof nf->front + 32], values[COUNT][24];
    struct node nodes[COUNT];
    for (unsigned i = 0; i < COUNT; i++) {
        front_node(nf, all[i].name, paths[i], sizeof paths[i]);
        snprintf(values[i], sizeof values[i], "%" PRIu64, all[i].value);
        nodes[i] = (struct node){paths[i], values[i]};
    }
    return xenstore_write(nodes, COUNT);
}

bool netfront_connect(struct netfront *nf, enum rings rings)
{
    struct answer answer;
    nf->down = false;
    XenbusState state = wait_for(nf, XenbusStateInitWait, XenbusStateInitWait, PATIENCE_NS);
    if (state != XenbusStateInitWait)
        return in_vain(nf, XenbusStateInitWait, state);
    nf->features.sg = !nf->without.sg && says_one(nf, "feature-sg");
    nf->features.csum = !nf->without.csum && says_one(nf, "feature-ipv6-csum-offload") && !says_one(nf, "feature-no-csum-offload");
    nf->features.gso = !nf->without.gso && nf->features.sg && nf->features.csum && says_one(nf, "feature-gso-tcpv4") &&
                       says_one(nf, "feature-gso-tcpv6");
    if (rings == FRESH || nf->tx.sring == NULL)
        begin_rings(nf);
    nf->awaited = 1;
    grant_access(nf, REF(TX_RING), TX_RING, false);
    grant_access(nf, REF(RX_RING), RX_RING, false);
    hypercall(&answer, "evtchn_alloc_unbound", ARGUMENTS({"remote", DOM0}, {"upcall", nf->upcall_number}), 0);
    nf->port = answer_number(&answer, "port");
    nf->connected = true; /* from here on there is something to give back */
    int error = write_nodes(nf);
    if (error || !set_state(nf, XenbusStateConnected))
        return netfront_down(nf, "xenstore: the device's nodes cannot be written"), false;
    state = wait_for(nf, XenbusStateConnected, XenbusStateClosing, PATIENCE_NS);
    if (state != XenbusStateConnected)
        return in_vain(nf, XenbusStateConnected, state);
    hypercall(&answer, "evtchn_notifier", ARGUMENTS({"port", nf->port}), 1);
    nf->notify_fd = answer.fds[0];
    nf->counts.connects++;
    netfront_notify(nf, true); /* of what is in rings that were kept */
    netfront_post(nf);
    return true;
}

/* The back end has let go of all that it had. */
static bool give_back(struct netfront *nf, enum rings rings)
{
    struct answer answer;
    if (nf->connected) {
        hypercall(&answer, "evtchn_close", ARGUMENTS({"port", nf->port}), 0);
        if (nf->notify_fd >= 0)
            close(nf->notify_fd);
        nf->notify_fd = -1;
        nf->connected = false;
        if (!end_access(nf, REF(TX_RING)) || !end_access(nf, REF(RX_RING)))
            return netfront_down(nf, "the back end still uses a ring after it has closed"), false;
    }
    if (rings == FRESH && nf->tx.sring != NULL) {
        netfront_forget_sends(nf);
        netfront_forget_receives(nf);
    }
    return true;
}

static bool leave(struct netfront *nf, XenbusState state, int64_t patience_ns)
{
    if (!set_state(nf, state))
        return netfront_down(nf, "xenstore: the device's state cannot be written"), false;
    XenbusState seen = wait_for(nf, state, XenbusStateClosed, patience_ns);
    return seen == state || seen == XenbusStateClosed || in_vain(nf, state, seen);
}

bool netfront_disconnect(struct netfront *nf, enum rings rings, bool restart)
{
    nf->down = false;
    if (!restart && !(leave(nf, XenbusStateClosing, PATIENCE_NS) && leave(nf, XenbusStateClosed, PATIENCE_NS)))
        return false;
    if (!set_state(nf, XenbusStateInitialising))
        return netfront_down(nf, "xenstore: the device's state cannot be written"), false;
    XenbusState seen = wait_for(nf, XenbusStateInitWait, XenbusStateInitWait, PATIENCE_NS);
    if (seen != XenbusStateInitWait)
        return in_vain(nf, XenbusStateInitWait, seen);
    return give_back(nf, rings);
}

void netfront_close(struct netfront *nf)
{
    told_to_end = 0; /* we do */
    if (nf->connected && leave(nf, XenbusStateClosing, LAST_PATIENCE_NS))
        leave(nf, XenbusStateClosed, LAST_PATIENCE_NS);
}

void netfront_follow(struct netfront *nf)
{
    if (!nf->connected || nf->down || !xenstore_is_there())
        return;
    XenbusState state = back_state(nf);
    if (xenstore_is_there() && (state == XenbusStateClosing || state == XenbusStateClosed || state == XenbusStateUnknown)) {
        netfront_down(nf, "the back end has closed the device");
        set_state(nf, XenbusStateClosed);
    }
}
