#include "job.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "faults.h"
#include "frames.h"
#include "xen.h"

const char *const job_names[] = {"report", "send", "ping", "receive", "reconnect", "spoil", "serve", NULL};
static const char *const frame_names[] = {"test", "tcp4", "tcp6", NULL};
static const char *const ring_names[] = {"fresh", "kept", NULL};
static const char *const way_names[] = {"close", "restart", NULL};
static const char *const switch_names[] = {"no", "yes", NULL};

static char problem[200];

static const char *wrong(const char *name, const char *value, const char *wanted)
{
    snprintf(problem, sizeof problem, "%s %.60s: it should be %s", name, value, wanted);
    return problem;
}

static int index_of(const char *const *names, const char *value, size_t length)
{
    for (int i = 0; names[i] != NULL; i++)
        if (strlen(names[i]) == length && memcmp(names[i], value, length) == 0)
            return i;
    return -1;
}

static const char *parse_choice(const char *name, const char *value, const char *const *names, int *chosen)
{
    char wanted[120] = "";
    if ((*chosen = index_of(names, value, strlen(value))) >= 0)
        return NULL;
    for (int i = 0; names[i] != NULL; i++)
        snprintf(wanted + strlen(wanted), sizeof wanted - strlen(wanted), "%s%s", i ? " or " : "", names[i]);
    return wrong(name, value, wanted);
}

static const char *parse_number(const char *name, const char *value, uint64_t least, uint64_t most, uint64_t *number)
{
    char *end, wanted[60];
    errno = 0;
    *number = strtoull(value, &end, 0);
    if (errno == 0 && value[0] != '-' && end != value && *end == '\0' && *number >= least && *number <= most)
        return NULL;
    snprintf(wanted, sizeof wanted, "%llu to %llu", (unsigned long long)least, (unsigned long long)most);
    return wrong(name, value, wanted);
}

static const char *parse_mac(const char *name, const char *value, uint8_t *mac)
{
    char rest;
    if (sscanf(value, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx%c", mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5, &rest) == 6)
        return NULL;
    return wrong(name, value, "a MAC address, such as 02:00:00:00:00:01");
}

static const char *parse_without(const char *name, const char *value, unsigned *without)
{
    static const char *const names[] = {"sg", "csum", "gso", NULL};
    *without = 0;
    if (strcmp(value, "none") == 0)
        return NULL;
    for (const char *at = value; *at != '\0' || at == value;) {
        size_t length = strcspn(at, ",");
        int feature = index_of(names, at, length);
        if (feature < 0)
            return wrong(name, value, "of sg,csum,gso, with commas between; or none");
        *without |= 1U << feature;
        at += length + (at[length] == ',');
    }
    return NULL;
}

static const char *parse_option(struct job *job, const char *name, const char *value)
{
    const struct {
        const char *name;
        uint64_t least, most;
        unsigned *number;
        uint64_t *large;
    } numbers[] = {
        {"--length", LEAST_TEST_FRAME, XEN_NETIF_MAX_TX_SIZE, &job->length, NULL},
        {"--stream", 0, 0xffff, &job->stream, NULL},
        {"--unit", 8, XEN_NETIF_MAX_TX_SIZE, &job->unit, NULL},
        {"--slot", 64, 1 << XEN_PAGE_SHIFT, &job->slot, NULL},
        {"--times", 1, 1000000, &job->times, NULL},
        {"--frames", 0, UINT32_MAX, NULL, &job->frames},
        {"--start", 0, UINT32_MAX, NULL, &job->start},
        {"--id", 0, UINT64_MAX, NULL, &job->id},
    };
    const struct {
        const char *name;
        const char *const *names;
        bool *flag;
        unsigned *number;
    } choices[] = {
        {"--rings", ring_names, &job->kept, NULL},
        {"--way", way_names, &job->restart, NULL},
        {"--abrupt", switch_names, &job->abrupt, NULL},
        {"--frame", frame_names, NULL, (unsigned *)&job->frame},
        {"--fault", fault_names, NULL, &job->fault},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        uint64_t number;
        if (strcmp(name, numbers[i].name) != 0)
            continue;
        const char *trouble = parse_number(name, value, numbers[i].least, numbers[i].most, &number);
        if (trouble == NULL && numbers[i].number != NULL)
            *numbers[i].number = (unsigned)number;
        if (trouble == NULL && numbers[i].large != NULL)
            *numbers[i].large = number;
        job->has_start |= numbers[i].large == &job->start;
        return trouble;
    }
    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++) {
        int chosen;
        if (strcmp(name, choices[i].name) != 0)
            continue;
        const char *trouble = parse_choice(name, value, choices[i].names, &chosen);
        if (trouble == NULL && choices[i].flag != NULL)
            *choices[i].flag = chosen;
        if (trouble == NULL && choices[i].number != NULL)
            *choices[i].number = (unsigned)chosen;
        return trouble;
    }
    if (strcmp(name, "--seconds") == 0) {
        char *end;
        job->seconds = strtod(value, &end);
        return *value != '\0' && *end == '\0' && job->seconds >= 0 && job->seconds <= 1e6 ? NULL : wrong(name, value, "seconds");
    }
    if (strcmp(name, "--to") == 0) {
        job->has_to = true;
        return parse_mac(name, value, job->to);
    }
    if (strcmp(name, "--without") == 0) {
        job->has_without = true;
        return parse_without(name, value, &job->without);
    }
    return wrong("option", name, "one that README.md names");
}

/* What is wrong with the whole, each part being right. */
static const char *judge(struct job *job)
{
    bool sends = job->kind == SEND || job->kind == PING || (job->kind == RECONNECT && job->frames > 0) || job->kind == SPOIL;
    if (sends && !job->has_to)
        return wrong(job_names[job->kind], "", "with --to, a MAC address");
    if (job->frame == TEST && job->length > MOST_TEST_FRAME)
        return wrong("--length", "of a test frame", "9014 at most; --frame tcp4 and tcp6 may be longer");
    if (job->frame != TEST && job->length < tcp_header(job->frame == TCP6) + job->unit)
        return wrong("--length", "of a TCP frame", "so long that its headers and a --unit fit");
    if (job->unit % 8 != 0)
        return wrong("--unit", "", "a multiple of 8");
    if (job->kind == PING && job->frame != TEST)
        return wrong("--frame", frame_names[job->frame], "test: others are not sent back");
    if ((job->length + job->slot - 1) / job->slot > XEN_NETIF_NR_SLOTS_MIN)
        return wrong("--slot", "", "so large that a frame has 18 slots at most (XEN_NETIF_NR_SLOTS_MIN)");
    return NULL;
}

const char *job_parse(struct job *job, char *const *words, unsigned count)
{
    *job = (struct job){.length = 64, .unit = 1448, .slot = 1 << XEN_PAGE_SHIFT, .times = 1};
    if (count == 0)
        return "which job? send, ping, receive, reconnect, spoil, report or serve";
    for (unsigned i = 0; i + 1 < count; i++) /* a job that is none has a report, too */
        if (strcmp(words[i], "--id") == 0)
            parse_option(job, words[i], words[i + 1]);
    int kind;
    const char *trouble = parse_choice("job", words[0], job_names, &kind);
    for (unsigned i = 1; i < count && trouble == NULL; i += 2)
        trouble = i + 1 < count ? parse_option(job, words[i], words[i + 1]) : wrong(words[i], "", "followed by its value");
    if (trouble == NULL) {
        job->kind = (enum job_kind)kind;
        trouble = judge(job);
    }
    return trouble;
}
