#include "session.h"

#include <stdlib.h>

#include "common.h"
#include "faults.h"

#define ANSWER_NS (2 * SECOND_NS) /* then a ping is lost */

static struct ends ends_of(const struct session *s)
{
    struct ends ends;
    memcpy(ends.to, s->job.to, sizeof ends.to);
    memcpy(ends.own, s->nf.mac, sizeof ends.own);
    return ends;
}

/* --- received ----------------------------------------------------------------------------------------------------------- */

static void echo(struct session *s, const uint8_t *frame, size_t length)
{
    struct netfront *nf = &s->nf;
    const struct offload none = {0};
    if (netfront_room(nf) < netfront_slots(length, PAGE, none)) {
        s->not_echoed++;
        return;
    }
    memcpy(s->out, frame, length);
    turn_round(s->out);
    netfront_send_chain(nf, s->out, length, PAGE, none);
    netfront_push(nf);
    s->echoed++;
}

static void handle(void *context, uint8_t *frame, size_t length, const struct offload *offload)
{
    struct session *s = context;
    bool test = is_test_frame(frame, length), asked = false;
    if (test && stream_of(frame) & ECHO) {
        asked = s->running && s->job.kind == PING && stream_of(frame) == s->job.stream;
        if (!asked)
            echo(s, frame, length);
    }
    if (verify(&s->trackers, frame, length, offload->blank, s->now_ns) && asked && s->waiting) {
        s->trips_ns[s->answered++] = (uint32_t)(now_ns() - s->asked_ns);
        s->waiting = false;
    }
}

/* --- to send ------------------------------------------------------------------------------------------------------------ */

static bool time_is_up(const struct session *s)
{
    return s->until_ns != 0 && now_ns() >= s->until_ns;
}

static void count_sent(struct session *s)
{
    s->sequence++;
    s->left--;
}

/* A burst of test frames, each in a slot, and written where it is sent from. */
static unsigned send_pages(struct session *s)
{
    struct netfront *nf = &s->nf;
    const struct ends ends = ends_of(s);
    unsigned n = s->left < BURST ? (unsigned)s->left : BURST;
    if (netfront_room(nf) < n)
        return 0; /* wait for room for a whole burst: small ones cost a hand-over each */
    for (unsigned i = 0; i < n; i++) {
        write_test_frame(netfront_page(nf, s->job.length), s->job.length, &ends, (uint16_t)s->job.stream, s->sequence);
        netfront_send_page(nf, s->job.length, (struct offload){0});
        count_sent(s);
    }
    return n;
}

/* Frames of several slots, or with an offload: as many as there is room for. */
static unsigned send_chains(struct session *s)
{
    struct netfront *nf = &s->nf;
    const struct ends ends = ends_of(s);
    bool tcp = s->job.frame != TEST, v6 = s->job.frame == TCP6;
    struct offload offload = {.blank = tcp && nf->features.csum};
    unsigned n = 0, units = s->shape.units;
    if (tcp && units > 1 && nf->features.gso) {
        offload.gso_type = v6 ? XEN_NETIF_GSO_TYPE_TCPV6 : XEN_NETIF_GSO_TYPE_TCPV4;
        offload.gso_size = (uint16_t)s->shape.unit;
    }
    bool cut = tcp && units > 1 && !offload.gso_type; /* here, into segments of a unit each */
    size_t length = !tcp ? s->job.length : tcp_header(v6) + (size_t)s->shape.unit * (cut ? 1 : units);
    unsigned slots = netfront_slots(length, s->job.slot, offload);
    for (; n < BURST && s->left > 0 && netfront_room(nf) >= slots; n++) {
        unsigned count = cut ? 1 : units;
        if (tcp)
            write_tcp_frame(s->out, &ends, &s->shape, (uint16_t)s->job.stream, (uint32_t)s->sequence, s->segment, count, offload.blank);
        else
            write_test_frame(s->out, length, &ends, (uint16_t)s->job.stream, s->sequence);
        netfront_send_chain(nf, s->out, length, s->job.slot, offload);
        s->segment += count;
        if (!tcp || s->segment >= units) {
            s->segment = 0;
            count_sent(s);
        }
    }
    return n;
}

static unsigned send_some(struct session *s)
{
    if (s->left == 0 || (time_is_up(s) && s->segment == 0))
        return 0;
    unsigned n = s->job.frame == TEST && s->job.length <= s->job.slot ? send_pages(s) : send_chains(s);
    if (n > 0)
        netfront_push(&s->nf);
    return n;
}

static bool is_sent(const struct session *s)
{
    return (s->left == 0 || (time_is_up(s) && s->segment == 0)) && netfront_pending(&s->nf) == 0;
}

/* --- jobs --------------------------------------------------------------------------------------------------------------- */

static unsigned turn_ping(struct session *s)
{
    if (s->waiting && now_ns() - s->asked_ns < ANSWER_NS)
        return 0;
    s->waiting = false;
    if (s->left == 0 || s->answered == MOST_TRIPS || time_is_up(s)) {
        if (netfront_pending(&s->nf) == 0)
            session_end(s, NULL);
        return 0;
    }
    uint64_t more = s->left - 1;
    s->left = 1;
    s->asked_ns = now_ns();
    unsigned n = send_some(s);
    s->waiting = n > 0;
    s->left = more + (n == 0);
    return n;
}

static unsigned turn_reconnect(struct session *s)
{
    enum rings rings = s->job.kept ? KEPT : FRESH;
    unsigned n = 0;
    if (s->cycling) {
        n = send_some(s);
        s->cycling = s->job.abrupt ? s->left > 0 : !is_sent(s);
    } else if (s->cycles == s->job.times) {
        if (netfront_pending(&s->nf) == 0) /* what was kept is answered, too */
            session_end(s, NULL);
    } else if (netfront_disconnect(&s->nf, rings, s->job.restart) && netfront_connect(&s->nf, rings)) {
        s->cycles++;
        s->left = s->job.frames;
        s->cycling = s->left > 0;
        n = 1;
    }
    return n;
}

static unsigned turn_spoil(struct session *s)
{
    if (s->left > 0) {
        const struct ends ends = ends_of(s);
        const struct tcp_shape shape = {.units = 2, .unit = 1448};
        size_t length = write_tcp_frame(s->out, &ends, &shape, (uint16_t)s->job.stream, 0, 0, 2, true);
        send_spoiled(&s->nf, s->job.fault, s->out, length);
        s->left = 0;
        return 1;
    }
    if (netfront_pending(&s->nf) == 0)
        session_end(s, NULL);
    return 0;
}

static unsigned turn_job(struct session *s)
{
    unsigned n = 0;
    switch (s->job.kind) {
    case REPORT: case SERVE:
        break;
    case SEND:
        n = send_some(s);
        if (is_sent(s))
            session_end(s, NULL);
        break;
    case PING:
        n = turn_ping(s);
        break;
    case RECEIVE:
        if ((s->job.frames > 0 && tracker_of(&s->trackers, s->job.stream)->frames >= s->job.frames) || time_is_up(s))
            session_end(s, NULL);
        break;
    case RECONNECT:
        n = turn_reconnect(s);
        break;
    case SPOIL:
        n = turn_spoil(s);
        break;
    }
    return n;
}

static struct tcp_shape shape_of(const struct job *job)
{
    struct tcp_shape shape = {.v6 = job->frame == TCP6, .unit = job->unit};
    if (job->frame != TEST)
        shape.units = (job->length - (unsigned)tcp_header(shape.v6)) / job->unit;
    return shape;
}

void session_begin(struct session *s, const struct job *job)
{
    s->job = *job;
    if (job->kind == PING)
        s->job.stream |= ECHO;
    if (job->has_start)
        s->nf.start = (RING_IDX)job->start;
    if (job->has_without)
        s->nf.without = (struct features){
            .sg = job->without & WITHOUT_SG, .csum = job->without & WITHOUT_CSUM, .gso = job->without & WITHOUT_GSO};
    s->running = true;
    s->error = NULL;
    s->sequence = s->answered = s->segment = s->cycles = 0;
    s->waiting = s->cycling = false;
    s->left = job->kind == RECONNECT ? 0 : job->kind == SPOIL ? 1 : job->frames > 0 ? job->frames : UINT64_MAX;
    s->shape = shape_of(job);
    s->started_ns = s->ended_ns = now_ns();
    s->until_ns = job->seconds > 0 ? s->started_ns + (int64_t)(job->seconds * 1e9) : 0;
    if (job->kind == PING && s->trips_ns == NULL && (s->trips_ns = malloc(MOST_TRIPS * sizeof *s->trips_ns)) == NULL)
        fail("no memory for %d round trips", MOST_TRIPS);
    if (job->kind == REPORT)
        session_end(s, NULL);
    else if (!s->nf.features.sg && job->kind != RECONNECT && (job->length > PAGE || job->slot < job->length) && job->frame == TEST &&
             (job->kind == SEND || job->kind == PING))
        session_end(s, "a frame of several slots takes feature-sg");
    else if (s->nf.down && job->kind != RECONNECT && job->kind != SERVE)
        session_end(s, s->nf.why);
}

void session_end(struct session *s, const char *error)
{
    if (!s->running)
        return;
    s->running = false;
    s->error = error;
    s->ended_ns = now_ns();
}

unsigned session_turn(struct session *s)
{
    unsigned moved = 0;
    s->now_ns = now_ns(); /* once for all frames of a turn */
    if (!s->nf.down) {
        moved = netfront_receive(&s->nf, BURST, handle, s);
        if (!s->nf.down)
            moved += netfront_reap(&s->nf);
    }
    if (s->running && (!s->nf.down || (s->job.kind == RECONNECT && s->cycles == 0 && !s->cycling)))
        moved += turn_job(s);
    if (s->nf.down && s->running && s->job.kind != SERVE)
        session_end(s, s->nf.why);
    return moved;
}

bool session_arm(struct session *s)
{
    unsigned pending = netfront_pending(&s->nf), room = 0;
    if (s->nf.down)
        return false;
    if (s->running && pending > 0)
        room = s->left == 0 || s->waiting || time_is_up(s) ? pending : pending / 2 + 1; /* all; or for the next burst */
    return netfront_arm(&s->nf, room);
}

int64_t session_limit(const struct session *s)
{
    int64_t until = s->running ? s->until_ns : 0, now;
    if (s->running && s->waiting)
        until = s->asked_ns + ANSWER_NS;
    if (until == 0 || (now = now_ns()) > until + SECOND_NS)
        return -1; /* it is over, and answers are waited for */
    return until > now ? until - now : SECOND_NS / 1000;
}
