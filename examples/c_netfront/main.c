/* A network front end for the lab's netback, on Xen's own headers: README.md says what it shows and how it is told what to do. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "common.h"
#include "hypercall.h"
#include "session.h"
#include "xenstore.h"

enum { HYPERCALLS = 3, XENSTORE = 4, MOST_WORDS = 64 };
#define JOB_NODE "data/job"
#define REPORT_NODE "data/report"

static struct session session;
static bool has_job; /* there is one in the store that has not been read yet */

/* --- the loop ----------------------------------------------------------------------------------------------------------- */

/* The upcall is an epoll descriptor of which the hypervisor sees to the event channels; we enter our xenstore socket, too. An event
 * without a cause is normal: what there is to do, the rings and the store say. */
static void watch_xenstore(int upcall)
{
    struct epoll_event event = {.events = EPOLLIN};
    if (epoll_ctl(upcall, EPOLL_CTL_ADD, XENSTORE, &event) < 0)
        fail("epoll_ctl: %s", strerror(errno));
}

static void sleep_for(struct session *s, int64_t limit_ns)
{
    struct epoll_event events[4];
    int limit_ms = limit_ns < 0 ? -1 : (int)((limit_ns + 999999) / 1000000);
    int n = epoll_pwait(s->nf.upcall, events, 4, limit_ms, &while_waiting);
    if (n < 0 && errno != EINTR)
        fail("epoll_pwait: %s", strerror(errno));
    s->nf.counts.wakeups += n > 0;
}

static void look_into_xenstore(struct session *s)
{
    if (xenstore_is_there()) {
        xenstore_listen(0);
        if (!xenstore_is_there()) /* dead: what is connected goes on */
            epoll_ctl(s->nf.upcall, EPOLL_CTL_DEL, XENSTORE, NULL);
    }
    if (xenstore_happened(BACK_END))
        netfront_follow(&s->nf);
}

static void tell(struct session *s)
{
    char text[2048];
    report(s, text, sizeof text);
    puts(text);
    fflush(stdout);
    xenstore_write(&(struct node){REPORT_NODE, text}, 1);
}

/* Until the job has ended, or something else in the store is to be looked at (when serving, a job), or we are told to end. */
static void run(struct session *s)
{
    unsigned rounds = 0;
    while (!told_to_end) {
        unsigned moved = session_turn(s);
        if (!s->running)
            return;
        if (moved > 0 && ++rounds % 16 != 0)
            continue; /* busy: a look at the store is a system call */
        if (moved == 0 && !xenstore_has_news() && !session_arm(s))
            sleep_for(s, session_limit(s));
        look_into_xenstore(s);
        has_job |= xenstore_happened(JOB);
        if (has_job)
            return;
    }
}

/* --- what to do --------------------------------------------------------------------------------------------------------- */

static void run_one(struct session *s, const struct job *job)
{
    session_begin(s, job);
    run(s);
    if (s->running)
        session_end(s, s->job.frames > 0 && s->job.kind != SERVE ? "told to end before it was done" : NULL);
    tell(s);
}

/* The next job that the store has, or NULL. What cannot be understood is reported, and is none. */
static const struct job *next_job(struct session *s)
{
    static struct job job;
    static char text[1024];
    char *words[MOST_WORDS];
    unsigned count = 0;
    int error = xenstore_read(JOB_NODE, text, sizeof text);
    if (error)
        text[0] = '\0';
    for (char *word = strtok(text, " "); word != NULL && count < MOST_WORDS; word = strtok(NULL, " "))
        words[count++] = word;
    if (count == 0 && error != E2BIG)
        return NULL; /* there is none */
    const char *trouble = error ? "the job is too long" : job_parse(&job, words, count);
    if (trouble == NULL && job.kind != SERVE)
        return &job;
    job = (struct job){.kind = REPORT, .id = error ? 0 : job.id};
    session_begin(s, &job);
    s->error = trouble ? trouble : "it serves already";
    tell(s);
    return NULL;
}

static void serve(struct session *s, const struct job *serving)
{
    int error = xenstore_watch(JOB_NODE, JOB);
    if (error)
        fail("xenstore: watching " JOB_NODE ": %s", strerror(error));
    while (!told_to_end) {
        if (!has_job) {
            session_begin(s, serving);
            run(s);
            continue;
        }
        has_job = false;
        const struct job *job = next_job(s);
        if (job != NULL)
            run_one(s, job); /* which ends early if there is another one */
    }
    session_end(s, NULL);
    tell(s);
}

int main(int argc, char **argv)
{
    struct session *s = &session;
    struct job job;
    const char *trouble = job_parse(&job, argv + 1, (unsigned)argc - 1);
    if (trouble != NULL) {
        fprintf(stderr, "c_netfront: %s\n", trouble);
        return 2;
    }
    heed_sigterm();
    hypercall_open(HYPERCALLS);
    xenstore_open(XENSTORE);
    s->nf.notify_fd = -1;
    session_begin(s, &job); /* for what it says of the device */
    s->running = false;
    netfront_create(&s->nf);
    watch_xenstore(s->nf.upcall);
    if (!netfront_connect(&s->nf, FRESH))
        fail("%s", s->nf.why);
    if (job.kind == SERVE)
        serve(s, &job);
    else
        run_one(s, &job);
    bool failed = s->error != NULL && !told_to_end;
    if (failed)
        fprintf(stderr, "c_netfront: %s\n", s->error);
    netfront_close(&s->nf);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
