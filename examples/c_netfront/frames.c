#include "frames.h"

#include <arpa/inet.h>
#include <endian.h>
#include <string.h>

#define SEED_STEP 0x2545F4914F6CDD1DULL
#define WORD_STEP 0x1E3779B97F4A7C15ULL

enum {
    TYPE = 12, STREAM = 14, SEQUENCE = 16, CHECKSUM = 24, DUE = 32, PAYLOAD = 40, COVERED = 64, /* of a test frame */
    TYPE_TEST = 0x88B5, TYPE_IPV4 = 0x0800, TYPE_IPV6 = 0x86DD,
    IP4 = 20, IP6 = 40, TCP = 20, TCP_PORT = 0x88B5, PROTOCOL_TCP = 6, ACK_PUSH = 0x18, HOPS = 64,
};

static uint64_t get64(const uint8_t *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return le64toh(word);
}

static void put64(uint8_t *at, uint64_t word)
{
    word = htole64(word);
    memcpy(at, &word, sizeof word);
}

static unsigned get16(const uint8_t *at) /* in network order, as all below */
{
    return (unsigned)at[0] << 8 | at[1];
}

static uint32_t get32(const uint8_t *at)
{
    return (uint32_t)get16(at) << 16 | get16(at + 2);
}

static void put16(uint8_t *at, unsigned value)
{
    at[0] = value >> 8 & 0xff;
    at[1] = value & 0xff;
}

static void put32(uint8_t *at, uint32_t value)
{
    put16(at, value >> 16);
    put16(at + 2, value & 0xffff);
}

static void put_ends(uint8_t *frame, const struct ends *ends, unsigned type)
{
    memcpy(frame, ends, sizeof *ends);
    put16(frame + TYPE, type);
}

void turn_round(uint8_t *frame)
{
    struct ends ends;
    memcpy(ends.own, frame, 6);
    memcpy(ends.to, frame + 6, 6);
    memcpy(frame, &ends, sizeof ends);
}

/* --- Ethernet ----------------------------------------------------------------------------------------------------------- */

static size_t covered(size_t length, unsigned stream)
{
    return stream & HEADER_ONLY && length > COVERED ? COVERED : length;
}

void write_test_frame(uint8_t *frame, size_t length, const struct ends *ends, uint16_t stream, uint64_t sequence)
{
    put_ends(frame, ends, TYPE_TEST);
    frame[STREAM] = stream & 0xff;
    frame[STREAM + 1] = stream >> 8;
    put64(frame + SEQUENCE, sequence);
    put64(frame + DUE, 0);
    length = covered(length, stream);
    uint64_t seed = (sequence + stream + 1) * SEED_STEP, total = sequence, word = seed, weight = 5;
    size_t words = (length - PAYLOAD) / 8, tail = (length - PAYLOAD) % 8;
    for (size_t i = 0; i < words; i++, word += WORD_STEP, weight += 2) {
        put64(frame + PAYLOAD + 8 * i, word);
        total += word * weight;
    }
    if (tail > 0) {
        uint8_t last[8];
        put64(last, seed & ((1ULL << 8 * tail) - 1));
        memcpy(frame + PAYLOAD + 8 * words, last, tail);
        total += get64(last) * weight;
    }
    put64(frame + CHECKSUM, total);
}

bool is_test_frame(const uint8_t *frame, size_t length)
{
    return length >= LEAST_TEST_FRAME && get16(frame + TYPE) == TYPE_TEST;
}

uint16_t stream_of(const uint8_t *test_frame)
{
    return (uint16_t)(test_frame[STREAM] | test_frame[STREAM + 1] << 8);
}

/* What the checksum of a frame should be, over what is there. */
static uint64_t checksum(const uint8_t *frame, size_t length)
{
    uint64_t total = get64(frame + SEQUENCE), weight = 3;
    size_t words = (length - DUE) / 8, tail = (length - DUE) % 8;
    for (size_t i = 0; i < words; i++, weight += 2)
        total += get64(frame + DUE + 8 * i) * weight;
    uint8_t last[8] = {0};
    memcpy(last, frame + DUE + 8 * words, tail);
    return total + get64(last) * weight;
}

/* --- TCP ---------------------------------------------------------------------------------------------------------------- */

size_t tcp_header(bool v6)
{
    return ETHERNET + (v6 ? IP6 : IP4) + TCP;
}

/* The one's complement sum of bytes, added to `total`, as 16-bit words of network order. `count` is even but for a last odd byte. */
static uint64_t sum(const uint8_t *bytes, size_t count, uint64_t total)
{
    size_t i = 0;
    for (; i + 4 <= count; i += 4)
        total += get32(bytes + i);
    for (; i + 2 <= count; i += 2)
        total += get16(bytes + i);
    return i < count ? total + ((unsigned)bytes[i] << 8) : total;
}

static unsigned folded(uint64_t total)
{
    while (total >> 16)
        total = (total & 0xffff) + (total >> 16);
    return (unsigned)total;
}

static uint64_t pseudo_header(const uint8_t *ip, bool v6, size_t tcp_length)
{
    uint64_t total = v6 ? sum(ip + 8, 32, 0) : sum(ip + 12, 8, 0);
    return total + PROTOCOL_TCP + tcp_length;
}

static void write_ipv4(uint8_t *ip, size_t tcp_length, uint32_t number)
{
    put16(ip, 0x4500);
    put16(ip + 2, (unsigned)(IP4 + tcp_length));
    put16(ip + 4, number & 0xffff);
    put16(ip + 6, 0x4000); /* not to be fragmented */
    put16(ip + 8, HOPS << 8 | PROTOCOL_TCP);
    put16(ip + 10, 0);
    put32(ip + 12, 0xC6120001); /* 198.18.0.1 */
    put32(ip + 16, 0xC6120002);
    put16(ip + 10, ~folded(sum(ip, IP4, 0)) & 0xffff);
}

static void write_ipv6(uint8_t *ip, size_t tcp_length)
{
    memset(ip, 0, IP6);
    put32(ip, 0x60000000);
    put16(ip + 4, (unsigned)tcp_length);
    put16(ip + 6, PROTOCOL_TCP << 8 | HOPS);
    put32(ip + 8, 0x20010002); /* 2001:2:: */
    put32(ip + 24, 0x20010002);
    ip[23] = 1;
    ip[39] = 2;
}

static uint64_t unit_seed(uint64_t number, unsigned stream)
{
    return (number + stream + 1) * SEED_STEP;
}

size_t write_tcp_frame(uint8_t *frame, const struct ends *ends, const struct tcp_shape *shape, uint16_t stream, uint32_t number,
                       unsigned first, unsigned count, bool blank)
{
    size_t header = tcp_header(shape->v6), tcp_length = TCP + (size_t)count * shape->unit;
    uint8_t *ip = frame + ETHERNET, *tcp = frame + header - TCP;
    put_ends(frame, ends, shape->v6 ? TYPE_IPV6 : TYPE_IPV4);
    if (shape->v6)
        write_ipv6(ip, tcp_length);
    else
        write_ipv4(ip, tcp_length, number);
    put16(tcp, stream);
    put16(tcp + 2, TCP_PORT);
    put32(tcp + 4, (number * shape->units + first) * shape->unit);
    put32(tcp + 8, number);
    put16(tcp + 12, 5 << 12 | ACK_PUSH);
    put16(tcp + 14, shape->units);
    put16(tcp + 16, 0);
    put16(tcp + 18, shape->unit);
    for (unsigned i = 0; i < count && !(stream & HEADER_ONLY); i++) {
        uint64_t word = unit_seed((uint64_t)number * shape->units + first + i, stream);
        for (unsigned k = 0; k < shape->unit; k += 8, word += WORD_STEP)
            put64(frame + header + (size_t)i * shape->unit + k, word);
    }
    uint64_t pseudo = pseudo_header(ip, shape->v6, tcp_length);
    put16(tcp + 16, blank ? folded(pseudo) : ~folded(sum(tcp, tcp_length, pseudo)) & 0xffff);
    return header - TCP + tcp_length;
}

static bool is_tcp_frame(const uint8_t *frame, size_t length, bool *v6)
{
    if (length <= tcp_header(false))
        return false;
    unsigned type = get16(frame + TYPE);
    *v6 = type == TYPE_IPV6;
    return (type == TYPE_IPV4 || *v6) && length > tcp_header(*v6) && get16(frame + tcp_header(*v6) - TCP + 2) == TCP_PORT;
}

/* --- verified ----------------------------------------------------------------------------------------------------------- */

struct tracker *tracker_of(struct trackers *t, unsigned stream)
{
    struct tracker *one = &t->all[stream % STREAMS];
    if (one->stream != stream)
        *one = (struct tracker){.stream = stream};
    return one;
}

static struct tracker *seen(struct trackers *t, unsigned stream, int64_t now)
{
    struct tracker *one = tracker_of(t, stream);
    if (one->frames + one->corrupt == 0)
        one->first_ns = now;
    one->last_ns = now;
    return one;
}

/* Account for number `sequence`. False: it has been there before. */
static bool account(struct tracker *one, uint64_t sequence, size_t length)
{
    if (sequence >= one->next) {
        uint64_t ahead = sequence - one->next;
        one->window = ahead < 63 ? one->window << (ahead + 1) | 1 : 1;
        one->next = sequence + 1;
        one->lost += (int64_t)ahead;
    } else {
        uint64_t behind = one->next - sequence - 1;
        if (behind >= 64 || one->window >> behind & 1) {
            one->duplicated++;
            return false;
        }
        one->window |= 1ULL << behind; /* late, not lost */
        one->lost--;
    }
    one->frames++;
    one->bytes += length;
    return true;
}

static bool verify_tcp(struct trackers *t, const uint8_t *frame, size_t length, bool v6, bool blank, int64_t now)
{
    size_t header = tcp_header(v6), payload = length - header;
    const uint8_t *ip = frame + ETHERNET, *tcp = frame + header - TCP;
    unsigned stream = get16(tcp), units = get16(tcp + 14), unit = get16(tcp + 18);
    uint32_t number = get32(tcp + 8), offset = get32(tcp + 4) - number * units * unit;
    struct tracker *one = seen(t, stream, now);
    bool sound = unit >= 8 && unit % 8 == 0 && units > 0 && tcp[12] == 5 << 4 && payload % unit == 0 && offset % unit == 0 &&
                 (uint64_t)offset + payload <= (uint64_t)units * unit;
    if (v6)
        sound = sound && get16(ip + 4) == length - ETHERNET - IP6;
    else
        sound = sound && ip[0] == 0x45 && get16(ip + 2) == length - ETHERNET && folded(sum(ip, IP4, 0)) == 0xffff;
    if (sound && !blank)
        sound = folded(sum(tcp, TCP + payload, pseudo_header(ip, v6, TCP + payload))) == 0xffff;
    uint64_t first = (uint64_t)number * units + (sound ? offset / unit : 0), wrong = 0;
    for (size_t at = 0; sound && at < payload && !(stream & HEADER_ONLY); at += unit) {
        uint64_t word = unit_seed(first + at / unit, stream);
        for (unsigned k = 0; k < unit; k += 8, word += WORD_STEP)
            wrong |= get64(frame + header + at + k) ^ word;
    }
    if (!sound || wrong) {
        one->corrupt++;
        return false;
    }
    bool good = true;
    for (size_t at = 0; at < payload; at += unit)
        good = account(one, first + at / unit, unit + (at == 0 ? header : 0)) && good;
    return good;
}

bool verify(struct trackers *t, const uint8_t *frame, size_t length, bool blank, int64_t now)
{
    bool v6;
    if (is_test_frame(frame, length)) {
        unsigned stream = stream_of(frame);
        struct tracker *one = seen(t, stream, now);
        if (checksum(frame, covered(length, stream)) == get64(frame + CHECKSUM))
            return account(one, get64(frame + SEQUENCE), length);
        one->corrupt++;
        return false;
    }
    if (is_tcp_frame(frame, length, &v6))
        return verify_tcp(t, frame, length, v6, blank, now);
    t->foreign++;
    return false;
}
