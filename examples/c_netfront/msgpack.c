#include "msgpack.h"

#include <string.h>

/* --- to pack ------------------------------------------------------------------------------------------------------------ */

static void put(struct packer *p, const void *bytes, size_t count)
{
    if ((size_t)(p->end - p->at) < count) {
        p->short_of_room = true;
        return;
    }
    memcpy(p->at, bytes, count);
    p->at += count;
}

static void put_byte(struct packer *p, unsigned byte)
{
    put(p, &(uint8_t){(uint8_t)byte}, 1);
}

static void put_big_endian(struct packer *p, uint64_t number, unsigned bytes)
{
    while (bytes-- > 0)
        put_byte(p, number >> (8 * bytes) & 0xff);
}

void pack_map(struct packer *p, unsigned pairs)
{
    put_byte(p, 0x80 | (pairs & 0xf));
}

void pack_string(struct packer *p, const char *text)
{
    size_t length = strlen(text);
    if (length < 32) {
        put_byte(p, 0xa0 | (unsigned)length);
    } else {
        put_byte(p, 0xda);
        put_big_endian(p, length, 2);
    }
    put(p, text, length);
}

void pack_number(struct packer *p, uint64_t number)
{
    if (number < 0x80) {
        put_byte(p, (unsigned)number);
    } else {
        put_byte(p, 0xcf);
        put_big_endian(p, number, 8);
    }
}

/* --- to unpack ---------------------------------------------------------------------------------------------------------- */

enum kind { NUMBER, STRING, ARRAY, MAP, PLAIN }; /* PLAIN: nil, booleans, floats, negative numbers */

static bool take(struct unpacker *u, uint64_t count, const uint8_t **bytes)
{
    if ((uint64_t)(u->end - u->at) < count)
        return false;
    *bytes = u->at;
    u->at += count;
    return true;
}

static bool big_endian(struct unpacker *u, unsigned bytes, uint64_t *number)
{
    const uint8_t *from;
    if (!take(u, bytes, &from))
        return false;
    *number = 0;
    for (unsigned i = 0; i < bytes; i++)
        *number = *number << 8 | from[i];
    return true;
}

/* The next value's kind, and its number or how long it is. */
static bool head(struct unpacker *u, enum kind *kind, uint64_t *value)
{
    const uint8_t *from;
    if (!take(u, 1, &from))
        return false;
    uint8_t tag = *from;
    *value = 0;
    if (tag < 0x80)
        return *kind = NUMBER, *value = tag, true;
    if (tag < 0x90)
        return *kind = MAP, *value = tag & 0xf, true;
    if (tag < 0xa0)
        return *kind = ARRAY, *value = tag & 0xf, true;
    if (tag < 0xc0)
        return *kind = STRING, *value = tag & 0x1f, true;
    if (tag >= 0xe0)
        return *kind = PLAIN, true;
    switch (tag) {
    case 0xc0: case 0xc2: case 0xc3: /* nil, false, true */
        return *kind = PLAIN, true;
    case 0xcc: case 0xcd: case 0xce: case 0xcf: /* u8 to u64 */
        return *kind = NUMBER, big_endian(u, 1U << (tag - 0xcc), value);
    case 0xd0: case 0xd1: case 0xd2: case 0xd3: /* i8 to i64 */
        return *kind = PLAIN, take(u, 1U << (tag - 0xd0), &from);
    case 0xca: case 0xcb: /* floats */
        return *kind = PLAIN, take(u, tag == 0xca ? 4 : 8, &from);
    case 0xc4: case 0xc5: case 0xc6: /* bytes */
        return *kind = STRING, big_endian(u, 1U << (tag - 0xc4), value);
    case 0xd9: case 0xda: case 0xdb:
        return *kind = STRING, big_endian(u, 1U << (tag - 0xd9), value);
    case 0xdc: case 0xdd:
        return *kind = ARRAY, big_endian(u, 2U << (tag - 0xdc), value);
    case 0xde: case 0xdf:
        return *kind = MAP, big_endian(u, 2U << (tag - 0xde), value);
    default: /* extensions, of which the protocol has none */
        return false;
    }
}

static bool of_kind(struct unpacker *u, enum kind wanted, uint64_t *value)
{
    struct unpacker ahead = *u;
    enum kind kind;
    if (!head(&ahead, &kind, value) || kind != wanted)
        return false;
    *u = ahead;
    return true;
}

bool unpack_map(struct unpacker *u, uint64_t *pairs)
{
    return of_kind(u, MAP, pairs);
}

bool unpack_array(struct unpacker *u, uint64_t *items)
{
    return of_kind(u, ARRAY, items);
}

bool unpack_number(struct unpacker *u, uint64_t *number)
{
    return of_kind(u, NUMBER, number);
}

bool unpack_string(struct unpacker *u, const char **text, uint64_t *length)
{
    return of_kind(u, STRING, length) && take(u, *length, (const uint8_t **)text);
}

bool unpack_skip(struct unpacker *u)
{
    for (uint64_t left = 1; left > 0; left--) { /* not recursive: how deep it is, the other side says */
        enum kind kind;
        uint64_t value;
        const uint8_t *from;
        if (!head(u, &kind, &value) || (kind == STRING && !take(u, value, &from)))
            return false;
        left += kind == ARRAY ? value : kind == MAP ? 2 * value : 0;
    }
    return true;
}

bool unpack_value(const struct unpacker *u, const char *key, struct unpacker *value)
{
    uint64_t pairs, length;
    const char *text;
    *value = *u;
    if (!unpack_map(value, &pairs))
        return false;
    for (; pairs > 0; pairs--) {
        if (!unpack_string(value, &text, &length))
            return false;
        if (length == strlen(key) && memcmp(text, key, length) == 0)
            return true;
        if (!unpack_skip(value))
            return false;
    }
    return false;
}
