/* The NIC is killed, at any step, and another one goes on from what is in memory (nic/resume.py, nic/engine.py; docs/faults.md).

   A sender's context and a receiver's, on one engine. In a batch the engine takes what the sender has posted, puts each frame into
   the receiver's next buffer, completes it there, completes the send if that is signalled; at the batch's end it notifies both and
   stores its checkpoint, word by word. It is killed up to KILLS times, while it recovers, too: then its stores come to memory, and
   the next one begins.

   Recovery: the send queue goes on behind the checkpoint, or behind the last completion that was written since. The receive queue goes
   on at the first place without a completion from the checkpoint on, but not from before `rq_prod` - size: a batch may fill a receive queue
   several times. Then the checkpoint is stored, each completion queue is kicked once, and both doorbells are looked at.
   Who is notified of what is simpler than in doorbell.pml: always.

   Holds: no frame is lost; after a kill at most one batch comes again; nobody's queue overruns; nobody sleeps for good. */

#ifndef KILLS
#define KILLS 1
#endif
#define NIC 0 /* and those after it */
#define PROCESSES (1 + KILLS)
#define NOTIFY_DRAINS

#define SQ_PROD 0
#define RQ_PROD 1
#define TO_NIC 2 /* the eventfds; the next NIC has the same ones */
#define TO_SENDER 3
#define TO_RECEIVER 4
#define CHECKPOINT_SQ 5
#define CHECKPOINT_SCQ 6
#define CHECKPOINT_RQ 7 /* rq_cons and rcq_prod, which are always equal */
#define SQ 8
#define SCQ_INDEX 10
#define SCQ_OWNER 12
#define RCQ_OWNER 14
#define BUFFER 15
#define SQ_SIZE 2
#define RQ_SIZE 1
#define WORDS 16
#define WRAP 16
#define DEPTH 3

#include "tso.h"

#ifndef FRAMES
#define FRAMES 4
#endif
#define BATCH SQ_SIZE
#define START 14
#define LAST plus(START, FRAMES)
#define SIGNALED 128
#define descriptor(index) (SQ + (index) % SQ_SIZE)
#define scq_index(index) (SCQ_INDEX + (index) % SQ_SIZE)
#define scq_owner(index) (SCQ_OWNER + (index) % SQ_SIZE)
#define scq_bit(index) (1 - ((index) / SQ_SIZE) % 2)
#define rcq_owner(index) (RCQ_OWNER + (index) % RQ_SIZE)
#define rcq_bit(index) (1 - ((index) / RQ_SIZE) % 2)
#define received(index) (BUFFER + (index) % RQ_SIZE)

bit kill;
byte kills, again;

#ifdef NO_RELEASE_OWNER
#define store_owner store
#else
#define store_owner store_release
#endif

/* The drivers' own stores and loads are in order: that is what doorbell.pml is about. Here they are steps. */
proctype sender()
{
    byte prod = START, done = START, scq_cons = START;

    do
    :: done == LAST -> break
    :: atomic { done != LAST && prod != LAST && minus(prod, done) < SQ_SIZE ->
        if
        :: plus(prod, 1) != LAST && minus(prod, done) + 1 < SQ_SIZE ->
            mem[descriptor(prod)] = prod;
            mem[descriptor(prod + 1)] = SIGNALED + plus(prod, 1);
            prod = plus(prod, 2)
        :: mem[descriptor(prod)] = SIGNALED + prod;
            prod = plus(prod, 1)
        fi;
        mem[SQ_PROD] = prod;
        mem[TO_NIC] = 1 }
    :: d_step { done != LAST && (prod == LAST || minus(prod, done) == SQ_SIZE) && mem[scq_owner(scq_cons)] == scq_bit(scq_cons) ->
        if
        :: minus(plus(mem[scq_index(scq_cons)], 1), done) <= minus(prod, done) -> done = plus(mem[scq_index(scq_cons)], 1)
        :: else /* a completion of what was completed before */
        fi;
        scq_cons = plus(scq_cons, 1) }
    :: atomic { done != LAST && (prod == LAST || minus(prod, done) == SQ_SIZE) && mem[scq_owner(scq_cons)] != scq_bit(scq_cons) ->
        sleep(TO_SENDER) }
    od
}

proctype receiver()
{
    byte cons = START, expected = START;

    do
    :: d_step { mem[rcq_owner(cons)] == rcq_bit(cons) ->
        if
        :: mem[received(cons)] == expected && expected != LAST -> expected = plus(expected, 1)
        :: else ->
            again++;
            assert(minus(expected, mem[received(cons)]) >= 1 && minus(expected, mem[received(cons)]) <= BATCH); /* none is left out */
            assert(again <= kills * BATCH)
        fi;
        cons = plus(cons, 1);
        mem[RQ_PROD] = plus(cons, RQ_SIZE);
        mem[TO_NIC] = 1 }
    :: atomic { expected != LAST && mem[rcq_owner(cons)] != rcq_bit(cons) -> sleep(TO_RECEIVER) }
    :: expected == LAST && mem[rcq_owner(cons)] != rcq_bit(cons) ->
end_all_received:
        sleep(TO_RECEIVER)
    od
}

inline store_checkpoint()
{
    store(me, CHECKPOINT_SQ, sq_cons);
    store(me, CHECKPOINT_RQ, rq_cons);
    store(me, CHECKPOINT_SCQ, scq_prod)
}

inline complete_send()
{
    if
    :: word & SIGNALED ->
        store(me, scq_index(scq_prod), sq_cons);
        store_owner(me, scq_owner(scq_prod), scq_bit(scq_prod));
        scq_prod = plus(scq_prod, 1)
    :: else
    fi
}

inline recover()
{
    load(me, CHECKPOINT_SQ, sq_cons);
    load(me, CHECKPOINT_SCQ, scq_prod);
#ifndef NO_SCAN_SENDS
    k = 0;
    do
    :: k < SQ_SIZE ->
        load(me, scq_owner(scq_prod), owner);
        if
        :: owner != scq_bit(scq_prod) -> break
        :: else
        fi;
        load(me, scq_index(scq_prod), word);
        if
        :: minus(plus(word, 1), sq_cons) <= SQ_SIZE -> sq_cons = plus(word, 1)
        :: else /* older than the checkpoint's sq_cons, which was stored before its scq_prod */
        fi;
        scq_prod = plus(scq_prod, 1);
        k++
    :: else -> break
    od;
#endif
#if defined(NO_SCAN_RECEIVES)
    load(me, CHECKPOINT_RQ, rq_cons);
#else
    load(me, RQ_PROD, rq_prod);
    load(me, CHECKPOINT_RQ, rq_cons);
#ifndef SCAN_RECEIVES_FROM_CHECKPOINT
    if
    :: minus(rq_prod, rq_cons) > RQ_SIZE -> rq_cons = minus(rq_prod, RQ_SIZE)
    :: else
    fi;
#endif
    k = 0;
    do
    :: k < RQ_SIZE ->
        load(me, rcq_owner(rq_cons), owner);
        if
        :: owner != rcq_bit(rq_cons) -> break
        :: else -> rq_cons = plus(rq_cons, 1)
        fi;
        k++
    :: else -> break
    od;
#endif
    rq_prod = rq_cons;
    word = 0;
    k = 0;
#ifndef NO_CHECKPOINT_AT_RECOVERY
    store_checkpoint();
#endif
#ifndef NO_KICK
    notify(me, TO_SENDER);
    notify(me, TO_RECEIVER);
#endif
#ifdef NO_DOORBELL_SCAN
    moved = 0;
    goto asleep
#endif
}

inline serve()
{
    do
    :: /* a turn of the send queue */
        moved = 0;
        load(me, SQ_PROD, sq_prod);
        assert(minus(sq_prod, sq_cons) <= SQ_SIZE);
        do
        :: sq_cons != sq_prod ->
            if
            :: rq_prod == rq_cons -> load(me, RQ_PROD, rq_prod)
            :: else
            fi;
            assert(minus(rq_prod, rq_cons) <= RQ_SIZE);
            if
            :: rq_prod == rq_cons -> break /* it pauses */
            :: else
            fi;
            moved = 1;
            load(me, descriptor(sq_cons), word);
#ifdef CHECKPOINT_FIRST
            store(me, CHECKPOINT_SQ, plus(sq_cons, 1));
#endif
#ifdef COMPLETE_FIRST
            complete_send();
#endif
            store(me, received(rq_cons), word & 127);
            store_owner(me, rcq_owner(rq_cons), rcq_bit(rq_cons));
            rq_cons = plus(rq_cons, 1);
#ifndef COMPLETE_FIRST
            complete_send();
#endif
            sq_cons = plus(sq_cons, 1)
        :: else -> break
        od;
        if
        :: moved ->
            notify(me, TO_SENDER);
            notify(me, TO_RECEIVER);
            store_checkpoint()
        :: else ->
asleep:
            word = 0;
end_idle:
            sleep(TO_NIC)
        fi
    od
}

proctype nic()
{
    byte me = NIC, sq_cons = START, sq_prod, scq_prod = START, rq_cons = START, rq_prod = START, word, k;
    bit moved, owner;

    do
    :: {
            if
            :: me != NIC -> recover()
            :: else
            fi;
            serve()
        } unless { atomic { kill -> kill = 0; kills++; me++ } };
#ifndef NO_REAP
        fence(me - 1)
#endif
    od
}

proctype killer()
{
end:
    do
    :: !kill && kills < KILLS -> kill = 1
    od
}

init {
    d_step {
        mem[SQ_PROD] = START;
        mem[RQ_PROD] = START + RQ_SIZE;
        mem[CHECKPOINT_SQ] = START;
        mem[CHECKPOINT_SCQ] = START;
        mem[CHECKPOINT_RQ] = START;
        mem[scq_owner(START)] = 1 - scq_bit(START);
        mem[scq_owner(START + 1)] = 1 - scq_bit(START);
        mem[rcq_owner(START)] = 1 - rcq_bit(START)
    }
    atomic {
        run memory(NIC);
        run memory(NIC + 1);
#if KILLS > 1
        run memory(NIC + 2);
#endif
        run sender();
        run receiver();
        run nic();
        run killer()
    }
}
