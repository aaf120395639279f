/* What every file needs: errors that end the program, waiting that SIGTERM ends, time. */
#ifndef COMMON_H
#define COMMON_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Say what went wrong, and exit with status 1. */
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* SIGTERM has come: the keeper wants us to end. It is blocked but where we wait, so none is missed between a look and a wait. */
extern volatile sig_atomic_t told_to_end;
extern sigset_t while_waiting;
void heed_sigterm(void);

/* True once `fd` can be read; false when `limit_ns` (−1: none) is over, or we are told to end. */
bool wait_readable(int fd, int64_t limit_ns);

/* CLOCK_MONOTONIC, in ns. */
int64_t now_ns(void);

#define SECOND_NS 1000000000LL

#endif
