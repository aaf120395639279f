/* What the program is told to do: on its command line, and when it serves in xenstore. The same words in both. */
#ifndef JOB_H
#define JOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum job_kind { REPORT, SEND, PING, RECEIVE, RECONNECT, SPOIL, SERVE };
enum frame_kind { TEST, TCP4, TCP6 };

struct job {
    enum job_kind kind;
    enum frame_kind frame;
    uint8_t to[6];
    bool has_to;
    unsigned length, stream, unit, slot, times, fault;
    uint64_t frames, start, id; /* frames 0: no limit */
    double seconds;             /* 0: no limit */
    unsigned without;           /* bits of WITHOUT_* */
    bool has_start, has_without, kept, restart, abrupt;
};

enum { WITHOUT_SG = 1, WITHOUT_CSUM = 2, WITHOUT_GSO = 4 };

extern const char *const job_names[];

/* Read a job from its words. NULL, or what is wrong with them. */
const char *job_parse(struct job *job, char *const *words, unsigned count);

#endif
