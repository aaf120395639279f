/* A job on its way: what is sent for it, and what has come of everything that was received. */
#ifndef SESSION_H
#define SESSION_H

#include "frames.h"
#include "job.h"
#include "netfront.h"

enum { BURST = 64, MOST_TRIPS = 1 << 20 };

struct session {
    struct netfront nf;
    struct trackers trackers;

    struct job job;
    bool running;
    const char *error;         /* why the job has failed */
    uint64_t sequence, left;   /* frame number, and how many more there are to send now */
    struct tcp_shape shape;
    unsigned segment;          /* of a TCP frame that is cut here: the next one */
    unsigned cycles;           /* of RECONNECT: done */
    bool cycling;              /* its frames are being sent */
    int64_t now_ns;            /* when this turn began */
    int64_t started_ns, ended_ns, until_ns;
    bool waiting;              /* for the answer of a PING */
    int64_t asked_ns;
    uint32_t *trips_ns;        /* of each answered PING */
    uint64_t answered, echoed, not_echoed;
    uint8_t out[MOST_FRAME + 1];
};

void session_begin(struct session *s, const struct job *job);
unsigned session_turn(struct session *s); /* receive, take in answers, send. Returns how much there was to do */
bool session_arm(struct session *s);      /* before sleeping: true if there is something to do after all */
int64_t session_limit(const struct session *s); /* ns that may be slept, −1: no limit */
void session_end(struct session *s, const char *error);

/* --- report.c --- */

void report(struct session *s, char *text, size_t room); /* a line of JSON */

#endif
