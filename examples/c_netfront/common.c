#include "common.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

volatile sig_atomic_t told_to_end;
sigset_t while_waiting;

void fail(const char *format, ...)
{
    va_list values;
    va_start(values, format);
    fputs("c_netfront: ", stderr);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    va_end(values);
    exit(EXIT_FAILURE);
}

static void end(int number)
{
    (void)number;
    told_to_end = 1;
}

void heed_sigterm(void)
{
    struct sigaction action = {.sa_handler = end};
    sigset_t blocked;
    sigemptyset(&action.sa_mask);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    if (sigaction(SIGTERM, &action, NULL) < 0 || sigprocmask(SIG_BLOCK, &blocked, &while_waiting) < 0)
        fail("SIGTERM: %s", strerror(errno));
    sigdelset(&while_waiting, SIGTERM);
}

int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * SECOND_NS + now.tv_nsec;
}

bool wait_readable(int fd, int64_t limit_ns)
{
    int64_t deadline = limit_ns < 0 ? -1 : now_ns() + limit_ns;
    while (!told_to_end) {
        int64_t left = deadline < 0 ? 0 : deadline - now_ns();
        if (left < 0)
            left = 0;
        struct pollfd one = {.fd = fd, .events = POLLIN};
        struct timespec limit = {left / SECOND_NS, left % SECOND_NS};
        int ready = ppoll(&one, 1, deadline < 0 ? NULL : &limit, &while_waiting);
        if (ready > 0)
            return true;
        if (ready == 0)
            return false;
        if (errno != EINTR)
            fail("ppoll: %s", strerror(errno));
    }
    return false;
}
