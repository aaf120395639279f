#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "session.h"

struct text {
    char *at, *end;
};

static void add(struct text *text, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    int n = vsnprintf(text->at, (size_t)(text->end - text->at), format, values);
    va_end(values);
    text->at = n < text->end - text->at ? text->at + n : text->end - 1;
}

static void add_numbers(struct text *text, unsigned count, const char *const *names, const uint64_t *values)
{
    for (unsigned i = 0; i < count; i++)
        add(text, "%s\"%s\": %" PRIu64, i ? ", " : "", names[i], values[i]);
}

static void add_counts(struct text *text, const struct counts *c)
{
    static const char *const names[] = {
        "tx_frames", "tx_slots", "tx_extras", "tx_okay", "tx_error", "tx_null", "tx_dropped", "unanswered",
        "rx_frames", "rx_slots", "rx_extras", "rx_chains", "rx_gso", "rx_blank", "rx_error",
        "notifications", "suppressed", "wakeups", "connects",
    };
    uint64_t values[sizeof names / sizeof *names];
    _Static_assert(sizeof values == sizeof *c, "each count has its name, in the same order");
    memcpy(values, c, sizeof values);
    add_numbers(text, sizeof names / sizeof *names, names, values);
}

static int by_size(const void *one, const void *other)
{
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
    return (a > b) - (a < b);
}

static void add_trips(struct text *text, struct session *s)
{
    qsort(s->trips_ns, s->answered, sizeof *s->trips_ns, by_size);
    const char *const names[] = {"min", "p50", "p99", "max"};
    const uint64_t last = s->answered - 1, at[] = {0, last / 2, last - last / 100, last};
    uint64_t values[4];
    for (unsigned i = 0; i < 4; i++)
        values[i] = s->trips_ns[at[i]];
    add(text, ", \"round_trip_ns\": {");
    add_numbers(text, 4, names, values);
    add(text, "}");
}

/* Letters, digits, spaces and a few signs are all that our own sentences have. */
static void add_sentence(struct text *text, const char *sentence)
{
    add(text, "\"");
    for (; *sentence != '\0'; sentence++)
        add(text, "%s%c", *sentence == '"' || *sentence == '\\' ? "\\" : "", *sentence);
    add(text, "\"");
}

void report(struct session *s, char *where, size_t room)
{
    struct text text = {where, where + room};
    const struct tracker *got = tracker_of(&s->trackers, s->job.stream);
    const bool tcp = s->job.frame != TEST;
    add(&text, "{\"job\": \"%s\", \"id\": %" PRIu64 ", \"stream\": %u, \"error\": ", job_names[s->job.kind], s->job.id, s->job.stream);
    if (s->error != NULL)
        add_sentence(&text, s->error);
    else
        add(&text, "null");
    add(&text, ", \"seconds\": %.9f, \"sent\": %" PRIu64 ", \"units\": %u, \"cycles\": %u", (double)(s->ended_ns - s->started_ns) / 1e9,
        s->sequence, tcp ? s->shape.units : 1, s->cycles);
    add(&text, ", \"answered\": %" PRIu64 ", \"echoed\": %" PRIu64 ", \"not_echoed\": %" PRIu64, s->answered, s->echoed, s->not_echoed);
    if (s->job.kind == PING && s->answered > 0)
        add_trips(&text, s);
    add(&text, ", \"features\": {\"sg\": %d, \"csum\": %d, \"gso\": %d}", s->nf.features.sg, s->nf.features.csum, s->nf.features.gso);
    add(&text, ", \"indices\": {\"tx\": %u, \"rx\": %u}", s->nf.tx.req_prod_pvt, s->nf.rx.req_prod_pvt);
    add(&text, ", \"received\": {\"frames\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"lost\": %" PRId64 ", \"duplicated\": %" PRIu64
               ", \"corrupt\": %" PRIu64 ", \"first_ns\": %" PRId64 ", \"last_ns\": %" PRId64 "}",
        got->frames, got->bytes, got->lost, got->duplicated, got->corrupt, got->first_ns, got->last_ns);
    add(&text, ", \"foreign\": %" PRIu64 ", \"device\": {", s->trackers.foreign);
    add_counts(&text, &s->nf.counts);
    add(&text, "}}");
}
