#include "hypercall.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

#include "common.h"

static int sock;
static uint64_t requests;

void hypercall_open(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
        fail("descriptor %d should be the hypercall socket: %s. Is this a guest of the lab?", fd, strerror(errno));
    sock = fd;
}

static void ask(const char *op, const struct argument *arguments, unsigned count)
{
    uint8_t packet[512];
    struct packer p = {packet, packet + sizeof packet, false};
    pack_map(&p, 3);
    pack_string(&p, "id");
    pack_number(&p, ++requests);
    pack_string(&p, "op");
    pack_string(&p, op);
    pack_string(&p, "args");
    pack_map(&p, count);
    for (unsigned i = 0; i < count; i++) {
        pack_string(&p, arguments[i].name);
        pack_number(&p, arguments[i].value);
    }
    if (p.short_of_room)
        fail("%s: its arguments do not fit into a packet", op);
    if (send(sock, packet, (size_t)(p.at - packet), MSG_NOSIGNAL) < 0)
        fail("%s: the hypervisor is gone: %s", op, strerror(errno));
}

/* One packet and its descriptors. Returns its length. */
static size_t receive(struct answer *answer, const char *op, unsigned *fds)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(MOST_FDS * sizeof(int))];
    } control;
    struct iovec part = {answer->packet, sizeof answer->packet};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    if (!wait_readable(sock, -1))
        fail("%s: told to end while the hypervisor was asked", op);
    ssize_t length = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
    if (length <= 0)
        fail("%s: the hypervisor is gone%s%s", op, length < 0 ? ": " : "", length < 0 ? strerror(errno) : "");
    if (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
        fail("%s: its answer is longer than any that was expected", op);
    *fds = 0;
    for (struct cmsghdr *one = CMSG_FIRSTHDR(&message); one != NULL; one = CMSG_NXTHDR(&message, one)) {
        if (one->cmsg_level == SOL_SOCKET && one->cmsg_type == SCM_RIGHTS) {
            *fds = (unsigned)((one->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            memcpy(answer->fds, CMSG_DATA(one), *fds * sizeof(int));
        }
    }
    return (size_t)length;
}

static _Noreturn void refused(const char *op, struct unpacker error)
{
    const char *name = "?", *sentence = "?";
    uint64_t items, name_length = 1, length = 1;
    if (unpack_array(&error, &items) && items == 2 && unpack_string(&error, &name, &name_length))
        unpack_string(&error, &sentence, &length);
    fail("%s: %.*s (%.*s)", op, (int)length, sentence, (int)name_length, name);
}

void hypercall(struct answer *answer, const char *op, const struct argument *arguments, unsigned count, unsigned fds)
{
    ask(op, arguments, count);
    for (;;) {
        unsigned received;
        struct unpacker reply = {answer->packet, answer->packet + receive(answer, op, &received)}, part;
        uint64_t number;
        if (!unpack_value(&reply, "id", &part) || !unpack_number(&part, &number) || number != requests)
            continue; /* an event, which nobody has asked for */
        if (unpack_value(&reply, "error", &part))
            refused(op, part);
        if (!unpack_value(&reply, "ok", &answer->value) || received != fds)
            fail("%s: an answer with %u descriptors, and %u were expected", op, received, fds);
        return;
    }
}

uint64_t answer_number(const struct answer *answer, const char *key)
{
    struct unpacker part;
    uint64_t number;
    if (!unpack_value(&answer->value, key, &part) || !unpack_number(&part, &number))
        fail("the hypervisor's answer has no number \"%s\"", key);
    return number;
}
