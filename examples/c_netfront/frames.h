/* The lab's test frames, written and verified: Ethernet (docs/netif.md, "The test frame"), and TCP over IPv4 or IPv6, whose frames
 * are longer than the MTU and are cut into segments on their way (hyp/load/tcp.py has the layout).
 *
 * A TCP test frame has `units` units of `unit` bytes, a multiple of 8. A unit is what a segment carries. Over IPv4, 198.18.0.1 →
 * 198.18.0.2; over IPv6, which is this program's own, 2001:2::1 → 2001:2::2. The TCP header says of which stream and frame it is:
 * source port: the stream; acknowledgment number: the frame's; window: units; urgent pointer: bytes in each; sequence number: that
 * of its first byte. Unit i of frame k is number k × units + i of its stream, and the words of a function of both. */
#ifndef FRAMES_H
#define FRAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ETHERNET = 14, LEAST_TEST_FRAME = 48, MOST_TEST_FRAME = 9014, ECHO = 0x8000, HEADER_ONLY = 0x4000, STREAMS = 64 };

struct ends {
    uint8_t to[6], own[6];
};

/* --- Ethernet --- */

void write_test_frame(uint8_t *frame, size_t length, const struct ends *ends, uint16_t stream, uint64_t sequence);
bool is_test_frame(const uint8_t *frame, size_t length);
uint16_t stream_of(const uint8_t *test_frame);
void turn_round(uint8_t *frame); /* exchange its addresses */

/* --- TCP --- */

struct tcp_shape {
    bool v6;
    unsigned units, unit;
};

size_t tcp_header(bool v6); /* bytes before the payload, Ethernet's included */

/* Write `count` units of frame number `number`, from `first` on, as a frame of their own. Its checksum is left blank, or right.
 * Returns its length. */
size_t write_tcp_frame(uint8_t *frame, const struct ends *ends, const struct tcp_shape *shape, uint16_t stream, uint32_t number,
                       unsigned first, unsigned count, bool blank);

/* --- verified --- */

/* What is known of a stream of test frames; of TCP's, `frames` are units. */
struct tracker {
    unsigned stream;
    uint64_t next, window; /* one more than the highest number seen; bit k: next − 1 − k has been seen */
    uint64_t frames, bytes, duplicated, corrupt;
    int64_t lost, first_ns, last_ns;
};

struct trackers {
    struct tracker all[STREAMS];
    uint64_t foreign; /* frames that are no test's */
};

struct tracker *tracker_of(struct trackers *t, unsigned stream); /* what is known; of another stream, nothing */

/* Account for a frame that has come at `now`. `blank`: its TCP checksum is not filled in. True if it is a good one. */
bool verify(struct trackers *t, const uint8_t *frame, size_t length, bool blank, int64_t now);

#endif
