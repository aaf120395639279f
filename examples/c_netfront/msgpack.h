/* As much of MessagePack (msgpack.org) as hypercalls take: maps with string keys, strings, numbers from 0 on; anything is skipped. */
#ifndef MSGPACK_H
#define MSGPACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Writes to `at`; what does not fit before `end` is left out, and `short_of_room` set. */
struct packer {
    uint8_t *at, *end;
    bool short_of_room;
};

void pack_map(struct packer *p, unsigned pairs); /* up to 15; then each key and its value are packed */
void pack_string(struct packer *p, const char *text);
void pack_number(struct packer *p, uint64_t number);

/* Reads from `at`. Each function returns false, and then has read nothing of use, if what is there is something else. */
struct unpacker {
    const uint8_t *at, *end;
};

bool unpack_map(struct unpacker *u, uint64_t *pairs);
bool unpack_array(struct unpacker *u, uint64_t *items);
bool unpack_string(struct unpacker *u, const char **text, uint64_t *length); /* without a NUL at its end */
bool unpack_number(struct unpacker *u, uint64_t *number);
bool unpack_skip(struct unpacker *u);

/* The value that the map `u` has under `key`. False if it has none, or is no map. `u` itself stays where it is. */
bool unpack_value(const struct unpacker *u, const char *key, struct unpacker *value);

#endif
