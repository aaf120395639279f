#include "xenstore.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <xen/io/xs_wire.h> /* after errno.h: it names errors, too */

#include "common.h"

static int sock = -1; /* −1: xenstored is gone */
static uint32_t requests;
static bool events[WATCHES];

void xenstore_open(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
        fail("descriptor %d should be the xenstore socket: %s. Is this a guest of the lab?", fd, strerror(errno));
    sock = fd;
}

bool xenstore_is_there(void)
{
    return sock >= 0;
}

/* --- messages ----------------------------------------------------------------------------------------------------------- */

static int gone(void)
{
    sock = -1; /* the descriptor stays open: its number must not become another's in somebody's epoll set */
    return ENOTCONN;
}

static int read_whole(void *bytes, size_t count)
{
    for (size_t done = 0; done < count;) {
        if (!wait_readable(sock, -1))
            return EINTR;
        ssize_t n = read(sock, (char *)bytes + done, count - done);
        if (n <= 0)
            return gone();
        done += (size_t)n;
    }
    return 0;
}

/* The next message. `payload` has room for XENSTORE_PAYLOAD_MAX bytes and a NUL. */
static int receive(struct xsd_sockmsg *header, char *payload)
{
    int error = read_whole(header, sizeof *header);
    if (error == 0 && header->len > XENSTORE_PAYLOAD_MAX)
        error = gone();
    if (error == 0)
        error = read_whole(payload, header->len);
    if (error == 0)
        payload[header->len] = '\0';
    return error;
}

static void note_event(const char *payload, uint32_t length)
{
    size_t path = strlen(payload) + 1; /* then comes the token */
    if (path < length && payload[path] >= '0' && payload[path] < '0' + WATCHES)
        events[payload[path] - '0'] = true;
}

static int error_named(const char *name)
{
    for (size_t i = 0; i < sizeof xsd_errors / sizeof *xsd_errors; i++)
        if (strcmp(xsd_errors[i].errstring, name) == 0)
            return xsd_errors[i].errnum;
    return EIO;
}

/* Ask, and wait for the answer, which replaces `payload`; events on the way are noted. */
static int request(uint32_t type, uint32_t transaction, char *payload, size_t *length)
{
    if (sock < 0)
        return ENOTCONN;
    struct xsd_sockmsg header = {type, ++requests, transaction, (uint32_t)*length};
    char message[sizeof header + XENSTORE_PAYLOAD_MAX];
    if (*length > XENSTORE_PAYLOAD_MAX)
        return E2BIG;
    memcpy(message, &header, sizeof header);
    memcpy(message + sizeof header, payload, *length);
    for (size_t done = 0; done < sizeof header + *length;) {
        ssize_t n = send(sock, message + done, sizeof header + *length - done, MSG_NOSIGNAL);
        if (n <= 0)
            return gone();
        done += (size_t)n;
    }
    for (;;) {
        int error = receive(&header, payload);
        if (error)
            return error;
        if (header.type == XS_WATCH_EVENT) {
            note_event(payload, header.len);
        } else if (header.req_id == requests) {
            *length = header.len;
            return header.type == XS_ERROR ? error_named(payload) : 0;
        }
    }
}

/* `request` with one or two strings, each with its NUL but for a value to write, which has none. */
static int request_strings(uint32_t type, uint32_t transaction, const char *one, const char *other, bool value, char *payload)
{
    size_t length = strlen(one) + 1, more = other ? strlen(other) + !value : 0;
    if (length + more > XENSTORE_PAYLOAD_MAX)
        return E2BIG;
    memcpy(payload, one, length);
    if (more)
        memcpy(payload + length, other, more);
    length += more;
    return request(type, transaction, payload, &length);
}

/* --- operations --------------------------------------------------------------------------------------------------------- */

int xenstore_read(const char *path, char *value, size_t room)
{
    char payload[XENSTORE_PAYLOAD_MAX + 1];
    int error = request_strings(XS_READ, 0, path, NULL, false, payload);
    if (error == 0 && strlen(payload) >= room)
        error = E2BIG;
    if (error == 0)
        strcpy(value, payload);
    return error;
}

int xenstore_first(const char *path, char *name, size_t room)
{
    char payload[XENSTORE_PAYLOAD_MAX + 1];
    int error = request_strings(XS_DIRECTORY, 0, path, NULL, false, payload);
    if (error == 0 && payload[0] == '\0')
        error = ENOENT;
    if (error == 0 && strlen(payload) >= room)
        error = E2BIG;
    if (error == 0)
        strcpy(name, payload);
    return error;
}

static int write_in(uint32_t transaction, const struct node *nodes, unsigned count)
{
    char payload[XENSTORE_PAYLOAD_MAX + 1];
    int error = 0;
    for (unsigned i = 0; i < count && error == 0; i++)
        error = request_strings(XS_WRITE, transaction, nodes[i].path, nodes[i].value, true, payload);
    return error;
}

int xenstore_write(const struct node *nodes, unsigned count)
{
    char payload[XENSTORE_PAYLOAD_MAX + 1];
    for (;;) {
        uint32_t transaction = 0;
        int error = request_strings(XS_TRANSACTION_START, 0, "", NULL, false, payload);
        if (error == 0 && sscanf(payload, "%" SCNu32, &transaction) != 1)
            error = EIO;
        if (error)
            return error;
        error = write_in(transaction, nodes, count);
        int ended = request_strings(XS_TRANSACTION_END, transaction, error ? "F" : "T", NULL, false, payload);
        if (error || ended != EAGAIN) /* EAGAIN: somebody has changed what we have seen, so once more */
            return error ? error : ended;
    }
}

int xenstore_watch(const char *path, enum watched what)
{
    char payload[XENSTORE_PAYLOAD_MAX + 1], token[2] = {(char)('0' + what), '\0'};
    return request_strings(XS_WATCH, 0, path, token, false, payload);
}

bool xenstore_listen(int64_t limit_ns)
{
    struct xsd_sockmsg header;
    char payload[XENSTORE_PAYLOAD_MAX + 1];
    bool something = false;
    while (sock >= 0 && wait_readable(sock, something ? 0 : limit_ns)) {
        if (receive(&header, payload) == 0 && header.type == XS_WATCH_EVENT)
            note_event(payload, header.len);
        something = true;
    }
    return something;
}

bool xenstore_happened(enum watched what)
{
    bool did = events[what];
    events[what] = false;
    return did;
}

bool xenstore_has_news(void)
{
    return events[BACK_END] || events[JOB];
}
