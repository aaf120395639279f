"""The traffic program's loop, one for each of a guest's queues: verified streams and round trips. Compiled.

A stream is sent as fast as the device takes it, or, given a rate, on a schedule (open loop: `hyp/load/schedule.py`). Frames that
are longer than a send buffer: `domu/programs/long_frames.py`.

It always receives: every test frame is verified and accounted for; one whose stream has the ECHO bit is sent back with its MAC
addresses swapped, unless this loop asked for it. An answer that finds no room to send waits, and what comes meanwhile is received.
At most one job of its own runs at a time: a stream or a series of round trips. What starts jobs is domu/programs/traffic.py.
"""

import numpy as np

from domu.device import (
    ALL,
    BURST,
    FAILED,
    RX,
    TX,
    arm,
    device_at,
    frame_addr,
    frame_length,
    frame_word,
    rx_poll,
    rx_release,
    set_word,
    sleep_for,
    tx_commit,
    tx_pending,
    tx_reserve,
)
from domu.exchange import EXCHANGE, take_up
from domu.programs.long_frames import LONG_FIELDS, put_together, receive_long, send_long
from domu.programs.mix import MIX_FIELDS, begin_mix, send_mix
from domu.programs.replay import REPLAY_FIELDS, begin_replaying, send_replay
from hyp.abi.counters import DROP_QUEUE_FULL
from hyp.abi.fragment import CSUM_BLANK, MORE
from hyp.abi.frame import ETHERTYPE_WIRE, MIN_TEST_FRAME, STREAM
from hyp.abi.sizes import LARGEST_FRAME_BUFFER
from hyp.atomics import (
    clock_ns,
    cpu_relax,
    load16,
    load64,
    memcpy,
    notify,
    prefetch_frame,
    prefetch_frame_for_write,
    record_view,
    store64,
)
from hyp.capture.ring import record_frame, tell_recorder
from hyp.counters import commit, count
from hyp.engine import STOP, mail_address, mail_record, mail_taken, mail_waiting
from hyp.events import end_spin, spin_limit, spins, wait_at
from hyp.frames import head_words, source_of
from hyp.kernels import compiled, entry, i64, outlined
from hyp.load.frames import is_test_frame, verify, write_test_frame
from hyp.load.schedule import begin_schedule, frame_sent, frames_due, note_lag, schedule_at, stamp
from hyp.load.tcp import LARGEST, verify_frame

ECHO = 0x8000  # in the stream number: the receiver sends the frame back
SEND_STREAM, ROUND_TRIPS, END_JOB, SEND_REPLAY, SEND_MIX = 1, 2, 3, 4, 5
MAIL = mail_record("stream", "destination", "length", "frames", "nanoseconds", "pps", "units", "unit", "entries", "round_ns")
IDLE, STREAMING, DRAINING, ASKING = 0, 1, 2, 3
MAX_ROUND_TRIPS = 1 << 20
ANSWERS, ANSWER_BYTES = 64, LARGEST_FRAME_BUFFER + 16
"""Answers that wait for room to send, while other frames are received: who asks and takes no answers is to hold up nobody else."""
REPLY_TIMEOUT_NS = 1_000_000_000

TRAFFIC = np.dtype(
    [
        ("device", "i8"),
        ("mailbox", "i8"),
        ("mail", "i8"),
        ("trackers", "i8"),
        ("counts", "i8"),  # the program's counters row
        ("counts_shared", "i8"),
        ("done_fd", "i8"),
        ("job", "i8"),  # IDLE, STREAMING, DRAINING, ASKING
        ("stream", "i8"),
        ("destination", "i8"),  # MAC address
        ("length", "i8"),
        *LONG_FIELDS,
        *REPLAY_FIELDS,
        *MIX_FIELDS,
        ("left", "i8"),
        ("until_ns", "i8"),  # 0: no limit in time
        ("sequence", "i8"),
        ("schedule", "i8"),  # a SCHEDULE record, for streams
        ("started_ns", "i8"),
        ("ended_ns", "i8"),
        ("waiting", "i8"),  # ASKING: a request is under way
        ("asked_ns", "i8"),
        ("latencies", "i8"),  # MAX_ROUND_TRIPS × i8, ns
        ("answered", "i8"),
        ("failed", "i8"),
        ("recorder", "i8"),  # a RING record (hyp/capture/ring.py): what arrives is recorded; 0: it isn't
        ("recorded", "i8"),  # frames at the head of the receive queue that have been
        ("answers", "i8"),  # answers that wait for a send buffer: ANSWERS × (length, 8 bytes of padding, frame)
        ("answers_prod", "i8"),
        ("answers_cons", "i8"),
        ("now", "i8"),
        ("idle_since", "i8"),
    ]
)
_traffic_at = record_view(TRAFFIC)
_mail_at = record_view(MAIL)


@compiled
def _begin_job(p, m):
    p.job = ASKING if m.opcode == ROUND_TRIPS else STREAMING
    p.stream, p.destination, p.length, p.left, p.sequence = m.stream, m.destination, m.length, m.frames, 0
    p.started_ns = clock_ns()
    p.until_ns = p.started_ns + m.nanoseconds if m.nanoseconds > 0 else 0
    p.units, p.unit, p.part = m.units, m.unit, 0
    p.waiting, p.answered, p.replays, p.sizes = 0, 0, 0, 0
    begin_schedule(schedule_at(p.schedule), m.pps, p.started_ns)
    if m.opcode == SEND_REPLAY:
        begin_replaying(p, m)
    elif m.opcode == SEND_MIX:
        begin_mix(p, m)


@compiled
def _end_job(p) -> None:
    p.job = IDLE
    p.ended_ns = clock_ns()
    notify(p.done_fd)


@compiled
def _take_mail(p):
    stop = False
    while mail_waiting(p.mailbox, p.mail) > 0:
        m = _mail_at(mail_address(p.mailbox, p.mail))
        if m.opcode == STOP:
            stop = True
        elif m.opcode == END_JOB:
            p.left = 0
        elif m.opcode == EXCHANGE:
            take_up(p.device)
        else:
            _begin_job(p, m)
        p.mail += 1
    mail_taken(p.mailbox, p.mail)
    return stop


@compiled
def _answer(p, frame, length):
    """Have a frame sent back at the end of this burst, or when there is room. What is too much to wait drops under that name."""
    if p.answers_prod - p.answers_cons >= ANSWERS or length > LARGEST_FRAME_BUFFER:
        count(p.counts, DROP_QUEUE_FULL, 1)
        return
    place = p.answers + (p.answers_prod % ANSWERS) * ANSWER_BYTES
    store64(place, length)
    memcpy(place + 16, frame, length)
    p.answers_prod += 1


@outlined
def _send_answers(p, d):
    """Send the frames back that are to be, their addresses swapped, as far as there is room. Returns their number, or FAILED."""
    n = tx_reserve(p.device, min(p.answers_prod - p.answers_cons, BURST))
    if n <= 0:
        return n
    for k in range(n):
        place = p.answers + (p.answers_cons % ANSWERS) * ANSWER_BYTES
        length, frame, buffer = min(load64(place), d.room), place + 16, frame_addr(d.tx, k)
        memcpy(buffer, frame, length)
        head0, head1 = load64(frame), load64(frame + 8)
        back0, back1 = head_words(source_of(head0, head1), d.mac, head1)
        store64(buffer, back0)
        store64(buffer + 8, back1)
        set_word(d.tx, k, length)
        p.answers_cons += 1
    return tx_commit(p.device, n)


@outlined
def _record(p, d, n):
    """Record what has arrived and was not there the last time. A frame of several fragments as one, as far as `p.back` holds it."""
    done = p.recorded
    while done < n:
        if frame_word(d.rx, done) & MORE == 0:
            record_frame(p.recorder, frame_addr(d.rx, done), frame_length(d.rx, done), p.now)
            done += 1
        else:
            length, fragments = put_together(p, d, done)
            record_frame(p.recorder, p.back, min(length, LARGEST), p.now)
            done += fragments
    p.recorded = done
    tell_recorder(p.recorder)


@compiled
def _receive(p, d):
    """Verify and answer what has arrived, one burst. Returns the number of frames, or FAILED."""
    n = rx_poll(p.device, BURST)
    if n <= 0:
        return n
    if p.recorder != 0:
        _record(p, d, n)
    done = 0
    while done < n:
        addr, length = frame_addr(d.rx, done), frame_length(d.rx, done)
        if frame_word(d.rx, done) & (MORE | CSUM_BLANK) != 0:
            done += receive_long(p, d, done)
            continue
        if length >= MIN_TEST_FRAME and is_test_frame(addr, length) and load16(addr + STREAM) & ECHO:
            prefetch_frame(addr, length)
            mine = p.job == ASKING and load16(addr + STREAM) == p.stream
            if not mine:
                _answer(p, addr, length)
            good = verify(p.trackers, p.counts, addr, length, p.now)
            if mine and good and p.waiting != 0:
                store64(p.latencies + 8 * p.answered, clock_ns() - p.asked_ns)
                p.answered += 1
                p.waiting = 0
        elif length > 0:
            verify_frame(p.trackers, p.counts, addr, length, 0, p.now)
        done += 1
    rx_release(p.device, done)
    p.recorded = max(p.recorded - done, 0)
    return done


@compiled
def _send_stream(p, d):
    """Write and send one burst of the stream, of what is due of it. Returns the number of frames, or FAILED."""
    s = schedule_at(p.schedule)
    if p.part == 0 and (p.left <= 0 or (p.until_ns != 0 and p.now >= p.until_ns)):
        if p.left > 0 and s.pps != 0:
            note_lag(s, p.now)
        p.job = DRAINING
        return 0
    if p.units != 0 or p.length > d.room:
        if p.replays != 0:
            return send_replay(p, d)
        return send_mix(p, d) if p.sizes != 0 else send_long(p, d)
    want = frames_due(s, p.now, min(BURST, p.left))
    if want == 0:
        return 0
    n = tx_reserve(p.device, want)
    if n < want:
        return min(n, 0)  # wait for room for a whole burst: small ones cost a hand-over each
    head0, head1 = head_words(p.destination, d.mac, ETHERTYPE_WIRE << 32)
    if s.pps != 0:
        _write_scheduled(p, d, s, n, head0, head1)
    else:
        burst, length, stream, sequence = d.tx, p.length, p.stream, p.sequence  # in registers: a store to a buffer might alias
        for k in range(n):
            write_test_frame(frame_addr(burst, k), length, head0, head1, stream, sequence + k, 0)
            set_word(burst, k, length)
    p.sequence += n
    p.left -= n
    return tx_commit(p.device, n)


@outlined
def _write_scheduled(p, d, s, n, head0, head1):
    """Write the next `n` frames of an open-loop stream, each stamped with the time at which it is due."""
    for k in range(n):
        write_test_frame(frame_addr(d.tx, k), p.length, head0, head1, p.stream, p.sequence + k, stamp(s))
        set_word(d.tx, k, p.length)
        frame_sent(s, p.now)


@compiled
def _ask(p, d):
    """Send the next request, if none is under way. Returns the number of frames, or FAILED."""
    if p.waiting != 0:
        if p.now - p.asked_ns < REPLY_TIMEOUT_NS:
            return 0
        p.waiting = 0  # lost on the way: the counters of some hop say where
    if p.left <= 0 or p.answered >= MAX_ROUND_TRIPS or (p.until_ns != 0 and p.now >= p.until_ns):
        p.job = DRAINING
        return 0
    n = tx_reserve(p.device, 1)
    if n <= 0:
        return n
    head0, head1 = head_words(p.destination, d.mac, ETHERTYPE_WIRE << 32)
    p.asked_ns = clock_ns()
    prefetch_frame_for_write(frame_addr(d.tx, 0), p.length)
    write_test_frame(frame_addr(d.tx, 0), p.length, head0, head1, p.stream, p.sequence, 0)
    set_word(d.tx, 0, p.length)
    p.sequence += 1
    p.left -= 1
    p.waiting = 1
    return tx_commit(p.device, 1)


@compiled
def _work(p, d):
    """One round. Returns the number of frames moved, or FAILED."""
    moved = _receive(p, d)
    answered = _send_answers(p, d) if p.answers_prod != p.answers_cons else 0
    sent = 0
    if p.job == STREAMING:
        sent = _send_stream(p, d)
    elif p.job == ASKING:
        sent = _ask(p, d)
    elif p.job == DRAINING and tx_pending(p.device) == 0:
        _end_job(p)
    if moved < 0 or answered < 0 or sent < 0:
        return FAILED
    return moved + answered + sent


@compiled
def _next_due(p):
    """When the next frame of an open-loop stream is due, if that is not yet; 0 if nothing but room is waited for."""
    s = schedule_at(p.schedule)
    return s.due_ns if p.job == STREAMING and s.pps != 0 and s.due_ns > p.now else 0


@compiled
def _time_left(p):
    """ns until the job has to do something even if nothing arrives (0: now), or −1."""
    deadline = 0
    if p.job == STREAMING:
        due = _next_due(p)
        deadline = due if due != 0 and (p.until_ns == 0 or due < p.until_ns) else p.until_ns
    elif p.job == ASKING:
        deadline = p.asked_ns + REPLY_TIMEOUT_NS
    return -1 if deadline == 0 else max(deadline - clock_ns(), 0)


@compiled
def _idle(p, d):
    wait = wait_at(d.wait)
    if spins(p, wait):
        return
    due = _next_due(p)
    if due != 0 and due - p.now <= spin_limit(wait):
        cpu_relax()
        return
    commit(p.counts, p.counts_shared)
    commit(d.counts, d.counts_shared)
    what = RX
    if (p.job == STREAMING and due == 0) or p.answers_prod != p.answers_cons:
        what |= TX
    elif p.job == DRAINING:
        what |= ALL
    if arm(p.device, what) != 0 or mail_waiting(p.mailbox, p.mail) > 0:
        return
    timeout = _time_left(p)
    if timeout != 0:
        sleep_for(d, what, timeout)
    end_spin(p, d.counts)


@entry(i64(i64))
def run(address: int) -> int:
    """Be the program until the mailbox says stop. `address`: the TRAFFIC record. Returns 0, or FAILED if the device failed."""
    p = _traffic_at(address)
    d = device_at(p.device)
    result = 0
    while True:
        if mail_waiting(p.mailbox, p.mail) > 0 and _take_mail(p):
            break
        p.now = clock_ns()
        moved = _work(p, d)
        if moved > 0:
            end_spin(p, d.counts)
        elif moved == 0:
            _idle(p, d)
        else:
            p.failed = 1
            result = FAILED
            break
    commit(p.counts, p.counts_shared)
    commit(d.counts, d.counts_shared)
    notify(p.done_fd)
    return result
