/* xenstore, by Xen's wire protocol (io/xs_wire.h) over the socket that was inherited for it.
 *
 * Functions return 0 or an errno: what xenstored says, or ENOTCONN once it is gone. A device that is connected then goes on.
 * Paths are relative to the domain's home, or absolute. */
#ifndef XENSTORE_H
#define XENSTORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct node {
    const char *path, *value;
};

enum watched { BACK_END, JOB, WATCHES }; /* what watches are for; each one's token is its number */

void xenstore_open(int fd);
bool xenstore_is_there(void);

int xenstore_read(const char *path, char *value, size_t room); /* of at most `room` − 1 bytes, with a NUL after them */
int xenstore_first(const char *path, char *name, size_t room); /* the first of a directory's names */
int xenstore_write(const struct node *nodes, unsigned count);  /* in one transaction */
int xenstore_watch(const char *path, enum watched what);

/* Take in what xenstored has sent, waiting for it no longer than `limit_ns` (−1: as long as it takes). False if nothing came. */
bool xenstore_listen(int64_t limit_ns);

/* True if what is watched for has happened since the last time that this was asked. A watch begins with "it has". */
bool xenstore_happened(enum watched what);

/* True if anything has, of which nobody has asked yet: it may have come with an answer, and no event will tell. */
bool xenstore_has_news(void);

#endif
