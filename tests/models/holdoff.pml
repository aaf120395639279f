/* Xen's ring with hold-off (hyp/ring.py): requests one way, responses the other, in the same slots.

   The front end sends FRAMES requests through a ring of ENTRIES slots, in batches, and when it can't go on asks to be notified of
   some response. The back end answers what it finds; it may owe the event for a while (dom0/engine.py), and sends it before it sleeps.
   Indices begin just before they wrap.

   Holds: every request and response is read as it was written; both ends come to their end: nobody sleeps for good while there is
   something to do. */

#define PROCESSES 2
#define FRONT 0
#define BACK 1

#define REQ_PROD 0
#define REQ_EVENT 1
#define RSP_PROD 2
#define RSP_EVENT 3
#define TO_BACK 4 /* the eventfds */
#define TO_FRONT 5
#define SLOT 6
#define ENTRIES 2
#define WORDS 8
#define WRAP 16

#include "tso.h"

#ifndef FRAMES
#define FRAMES 4
#endif
#define START 14
#define LAST plus(START, FRAMES)
#define REQUEST 16
#define RESPONSE 32
#define slot(index) (SLOT + (index) % ENTRIES)

bit front_done, back_done;

#ifdef NO_FENCE_PUBLISH
#define fence_publish(p) skip
#else
#define fence_publish(p) fence(p)
#endif
#ifdef NO_FENCE_ARM_REQUESTS
#define fence_arm_requests(p) skip
#else
#define fence_arm_requests(p) fence(p)
#endif
#ifdef NO_FENCE_ARM_RESPONSES
#define fence_arm_responses(p) skip
#else
#define fence_arm_responses(p) fence(p)
#endif
#ifdef NO_RELEASE_PUBLISH
#define store_index store
#else
#define store_index store_release
#endif
#ifdef NOTIFY_IF_EQUAL
#define is_due(event, old, new) (new == event)
#else
#define is_due(event, old, new) passed(event, old, new)
#endif

proctype front()
{
    byte prod = START, pushed = START, cons = START, seen = START, ahead, word;

    do
    :: /* take responses: unconsumed_responses, next_response */
#ifdef NO_ACQUIRE_RESPONSES
        load(FRONT, slot(cons), word);
#endif
        load(FRONT, RSP_PROD, seen);
        do
        :: cons != seen ->
#ifndef NO_ACQUIRE_RESPONSES
            load(FRONT, slot(cons), word);
#endif
            assert(word == RESPONSE + cons);
            cons = plus(cons, 1);
#ifdef NO_ACQUIRE_RESPONSES
            break
#endif
        :: else -> break
        od;
        if
        :: cons == LAST -> break
        :: else
        fi;
        /* write requests, at least one if there is room: next_request; then push_requests */
        do
        :: prod != LAST && minus(prod, cons) < ENTRIES ->
            store(FRONT, slot(prod), REQUEST + prod);
            prod = plus(prod, 1)
        :: prod != pushed || prod == LAST || minus(prod, cons) == ENTRIES -> break
        od;
        if
        :: prod != pushed ->
            store_index(FRONT, REQ_PROD, prod);
            fence_publish(FRONT);
            load(FRONT, REQ_EVENT, word);
            if
            :: is_due(word, pushed, prod) -> notify(FRONT, TO_BACK)
            :: else
            fi;
            pushed = prod
        :: else ->
            /* arm_responses, of any that are due */
            ahead = 1;
            do
            :: ahead < minus(prod, cons) -> ahead++
            :: break
            od;
            store(FRONT, RSP_EVENT, plus(cons, ahead));
            fence_arm_responses(FRONT);
#ifdef NO_RECHECK_ARM_RESPONSES
            word = cons;
#else
            load(FRONT, RSP_PROD, word);
#endif
            if
            :: minus(word, cons) >= ahead
            :: else -> sleep(TO_FRONT)
            fi
        fi
    od;
    front_done = 1
}

proctype back()
{
    byte cons = START, prod = START, seen = START, word;
    bit owed;

    do
    :: /* unconsumed_requests; each request is read, and answered in its slot */
#ifdef NO_ACQUIRE_REQUESTS
        load(BACK, slot(cons), word);
#endif
        load(BACK, REQ_PROD, seen);
        assert(minus(seen, cons) <= ENTRIES);
        if
        :: cons != seen ->
            do
            :: cons != seen ->
#ifndef NO_ACQUIRE_REQUESTS
                load(BACK, slot(cons), word);
#endif
                assert(word == REQUEST + cons);
                store(BACK, slot(cons), RESPONSE + cons);
                cons = plus(cons, 1);
#ifdef NO_ACQUIRE_REQUESTS
                break
#endif
            :: else -> break
            od;
            /* push_responses; the event is owed (owe_event), and may be sent later */
            store_index(BACK, RSP_PROD, cons);
            fence_publish(BACK);
            load(BACK, RSP_EVENT, word);
            owed = owed || is_due(word, prod, cons);
            prod = cons;
            if
            :: owed -> notify(BACK, TO_FRONT); owed = 0
            :: skip
            fi
        :: else ->
            /* a round that found nothing: tell_guest, then arm_requests, and sleep */
#ifndef NO_TELL_BEFORE_SLEEP
            if
            :: owed -> notify(BACK, TO_FRONT); owed = 0
            :: else
            fi;
#endif
            if
            :: cons == LAST -> break
            :: else
            fi;
            store(BACK, REQ_EVENT, plus(cons, 1));
            fence_arm_requests(BACK);
#ifdef NO_RECHECK_ARM_REQUESTS
            word = cons;
#else
            load(BACK, REQ_PROD, word);
#endif
            if
            :: word != cons
            :: else -> sleep(TO_BACK)
            fi
        fi
    od;
    back_done = 1
}

init {
    d_step {
        mem[REQ_PROD] = START;
        mem[RSP_PROD] = START;
        mem[REQ_EVENT] = plus(START, 1);
        mem[RSP_EVENT] = plus(START, 1)
    }
    atomic {
        run memory(FRONT);
        run memory(BACK);
        run front();
        run back()
    }
}

ltl served { <> (front_done && back_done) }
