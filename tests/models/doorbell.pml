/* A context's send queue: doorbell and arm (hyp/verbs.py, domu/frontends/bypass.py; nic/queues.py, nic/engine.py).

   The driver posts FRAMES descriptors in bursts, the last one of a burst signalled, publishes them, and tells the NIC at once or later
   (hand_over). Without room it tells, polls, arms, and sleeps (arm_queues). The NIC takes what it finds, completes what is signalled,
   may hold a notification back while it has work, and when it has none notifies, arms, looks again and sleeps (_idle).
   Indices begin just before they wrap.

   Holds: descriptors and completions are read as they were written; both ends come to their end. */

#define PROCESSES 2
#define DRIVER 0
#define NIC 1

#define SQ_PROD 0
#define SQ_EVENT 1
#define SCQ_EVENT 2
#define TO_NIC 3 /* the eventfds */
#define TO_DRIVER 4
#define SQ 5
#define CQ_INDEX 7 /* a completion's first word, and its second one, with the owner bit */
#define CQ_OWNER 9
#define SIZE 2
#define WORDS 11
#define WRAP 16

#include "tso.h"

#ifndef FRAMES
#define FRAMES 4
#endif
#define START 14
#define LAST plus(START, FRAMES)
#define SIGNALED 128
#define CQ_START 14
#define descriptor(index) (SQ + (index) % SIZE)
#define completion(index) (CQ_INDEX + (index) % SIZE)
#define owner_word(index) (CQ_OWNER + (index) % SIZE)
#define owner_bit(index) (1 - ((index) / SIZE) % 2)

bit driver_done, nic_done;

#ifdef NO_FENCE_TELL
#define fence_tell skip
#else
#define fence_tell fence(DRIVER)
#endif
#ifdef NO_FENCE_ARM_SENDS
#define fence_arm_sends skip
#else
#define fence_arm_sends fence(DRIVER)
#endif
#ifdef NO_FENCE_ARM_NIC
#define fence_arm_nic skip
#else
#define fence_arm_nic fence(NIC)
#endif
#ifdef NO_FENCE_PUBLISH
#define fence_publish skip
#else
#define fence_publish fence(NIC)
#endif

#ifdef NO_RELEASE_DOORBELL
#define store_doorbell store
#else
#define store_doorbell store_release
#endif
#ifdef NO_RELEASE_OWNER
#define store_owner store
#else
#define store_owner store_release
#endif

inline tell_sends()
{
    if
    :: rung != told ->
        fence_tell;
        load(DRIVER, SQ_EVENT, word);
        if
        :: passed(word, told, rung) -> notify(DRIVER, TO_NIC)
        :: else
        fi;
        told = rung
    :: else
    fi
}

inline poll_sends()
{
    do
    :: true ->
#ifdef NO_ACQUIRE_COMPLETION
        load(DRIVER, completion(scq_cons), word);
        load(DRIVER, owner_word(scq_cons), owner);
#else
        load(DRIVER, owner_word(scq_cons), owner);
        load(DRIVER, completion(scq_cons), word);
#endif
        if
        :: owner != owner_bit(scq_cons) -> break
        :: else ->
            assert(minus(plus(word, 1), done) > 0 && minus(plus(word, 1), done) <= minus(prod, done));
            done = plus(word, 1);
            scq_cons = plus(scq_cons, 1)
        fi
    od
}

proctype driver()
{
    byte prod = START, rung = START, told = START, done = START, scq_cons = CQ_START, signaled = CQ_START, ahead, word;
    bit owner;

    do
    :: done == LAST -> break
    :: done != LAST && prod != LAST && minus(prod, done) < SIZE ->
        /* tx_commit: a burst of one, or of all that there is room for; hand_over */
        do
        :: true ->
            if
            :: plus(prod, 1) != LAST && minus(prod, done) + 1 < SIZE -> store(DRIVER, descriptor(prod), prod); prod = plus(prod, 1)
            :: store(DRIVER, descriptor(prod), SIGNALED + prod); prod = plus(prod, 1); signaled = plus(signaled, 1); break
            fi
        od;
        store_doorbell(DRIVER, SQ_PROD, prod);
        rung = prod;
        if
        :: tell_sends()
        :: skip
        fi
    :: done != LAST && (prod == LAST || minus(prod, done) == SIZE) ->
        /* tx_reserve found no room: poll; then arm_queues, and sleep */
#ifndef NO_TELL_BEFORE_SLEEP
        tell_sends();
#endif
        poll_sends();
        if
        :: done == LAST || (prod != LAST && minus(prod, done) < SIZE)
        :: else ->
            ahead = 1;
            do
            :: ahead < minus(signaled, scq_cons) -> ahead++
            :: break
            od;
            store(DRIVER, SCQ_EVENT, plus(scq_cons, ahead));
            fence_arm_sends;
#ifdef NO_RECHECK_ARM_SENDS
            owner = 1 - owner_bit(plus(scq_cons, ahead - 1));
#else
            load(DRIVER, owner_word(plus(scq_cons, ahead - 1)), owner);
#endif
            if
            :: owner == owner_bit(plus(scq_cons, ahead - 1))
            :: else -> sleep(TO_DRIVER)
            fi
        fi
    od;
    driver_done = 1
}

inline tell_driver(idle)
{
    if
    :: scq_prod != scq_told ->
        fence_publish;
        load(NIC, SCQ_EVENT, word);
        if
        :: !passed(word, scq_told, scq_prod) -> scq_told = scq_prod
        :: passed(word, scq_told, scq_prod) -> notify(NIC, TO_DRIVER); scq_told = scq_prod
        :: passed(word, scq_told, scq_prod) && !idle /* held back: c.waits < PATIENCE */
        fi
    :: else
    fi
}

proctype nic()
{
    byte cons = START, prod = START, scq_prod = CQ_START, scq_told = CQ_START, armed = START, word;
    bit moved;

    do
    :: /* _begin_batch, then serve_sends: posted_sends */
        moved = 0;
#ifdef NO_ACQUIRE_DOORBELL
        load(NIC, descriptor(cons), word);
#endif
        load(NIC, SQ_PROD, prod);
        assert(minus(prod, cons) <= SIZE);
        do
        :: cons != prod ->
#ifndef NO_ACQUIRE_DOORBELL
            load(NIC, descriptor(cons), word);
#endif
            assert((word & 127) == cons);
            moved = 1;
            if
            :: word & SIGNALED ->
                store(NIC, completion(scq_prod), cons);
                store_owner(NIC, owner_word(scq_prod), owner_bit(scq_prod));
                scq_prod = plus(scq_prod, 1)
            :: else
            fi;
            cons = plus(cons, 1);
#ifdef NO_ACQUIRE_DOORBELL
            break
#endif
        :: else -> break
        od;
        if
        :: moved -> tell_driver(0)
        :: else ->
#ifndef NO_TELL_BEFORE_SLEEP_NIC
            tell_driver(1);
#endif
            if
            :: cons == LAST -> break
            :: else
            fi;
            if
            :: armed != plus(cons, 1) -> store(NIC, SQ_EVENT, plus(cons, 1)); armed = plus(cons, 1)
            :: else
            fi;
            fence_arm_nic;
#ifdef NO_RECHECK_ARM_NIC
            word = cons;
#else
            load(NIC, SQ_PROD, word);
#endif
            if
            :: word != cons
            :: else -> sleep(TO_NIC)
            fi
        fi
    od;
    nic_done = 1
}

init {
    d_step {
        mem[SQ_PROD] = START;
        mem[SQ_EVENT] = START;
        mem[SCQ_EVENT] = START;
        mem[owner_word(CQ_START)] = 1 - owner_bit(CQ_START);
        mem[owner_word(CQ_START + 1)] = 1 - owner_bit(CQ_START)
    }
    atomic {
        run memory(DRIVER);
        run memory(NIC);
        run driver();
        run nic()
    }
}

ltl served { <> (driver_done && nic_done) }
