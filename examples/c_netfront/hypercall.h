/* Hypercalls: requests to the hypervisor over the socket that was inherited for them (docs/hypercalls.md, "The protocol"). */
#ifndef HYPERCALL_H
#define HYPERCALL_H

#include "msgpack.h"

enum { MOST_FDS = 4 };

struct argument {
    const char *name;
    uint64_t value;
};

struct answer {
    struct unpacker value;
    int fds[MOST_FDS]; /* they are the caller's */
    uint8_t packet[4096];
};

void hypercall_open(int fd);

/* Ask, and wait for the answer, which comes with `fds` descriptors. Ends the program if the hypervisor refuses, or is gone. */
void hypercall(struct answer *answer, const char *op, const struct argument *arguments, unsigned count, unsigned fds);

/* The number that an answer has under `key`. */
uint64_t answer_number(const struct answer *answer, const char *key);

#endif
