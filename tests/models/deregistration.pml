/* Taking a translation away: the shootdown of hyp/iommu.py, and its polled form in hyp/monitor/dma.py.

   ENGINES engines of the NIC run batches; in each one an engine may look a page up, and then reaches memory by what it found, later, but
   in that batch. Between batches they may go to sleep, and are woken by others, or never. The hypervisor's process takes PAGES pages
   away, one request after the other or while another one waits (deregister, clear); a guest with iommu = "strict" takes one of its own
   away on its own thread (dma_unmap).

   Holds: once deregistration has returned no engine reaches the page, neither by a store still in its buffer; whoever waits is woken. */

#ifndef ENGINES
#define ENGINES 1
#endif
#ifndef BATCHES
#define BATCHES 3
#endif
#define PAGES 2
#define HYP ENGINES
#define GUEST (ENGINES + 1)
#define PROCESSES (ENGINES + 2)

#define REQUEST 0
#define TO_HYP 1 /* each engine has an eventfd of its own for that it is past a batch; here it is one, which wakes as well */
#define ENTRY(page) (2 + (page))
#define PAGE(page) (5 + (page))
#define EPOCH(engine) (8 + (engine))
#define WORDS (8 + ENGINES)
#define is_page(a) ((a) >= PAGE(0) && (a) <= PAGE(2))
#define GUESTS_PAGE 2

#define STORED(p, a, v) assert(!(is_page(a) && taken_away[(a) - PAGE(0)]))

bool taken_away[3];

#define WRAP 16
#include "tso.h"

#ifdef NO_FENCE_ENTRIES
#define fence_entries skip
#else
#define fence_entries fence(HYP)
#endif
#ifdef NO_FENCE_REQUEST
#define fence_request skip
#else
#define fence_request fence(HYP)
#endif
#ifdef NO_FENCE_FLUSH
#define fence_flush skip
#else
#define fence_flush fence(GUEST)
#endif
#ifdef NO_FENCE_BATCH
#define fence_batch skip
#else
#define fence_batch fence(me)
#endif
#ifdef NO_FENCE_IDLE
#define fence_idle skip
#else
#define fence_idle fence(me)
#endif
#ifdef NO_RELEASE_EPOCH
#define store_epoch store
#else
#define store_epoch store_release
#endif

inline heed_shootdown()
{
    load(me, REQUEST, request);
    if
    :: request != seen || heed_again ->
#ifdef NO_HEED_AGAIN
        heed_again = 0;
#else
        heed_again = (request != seen);
#endif
        seen = request;
        notify(me, TO_HYP)
    :: else
    fi
}

proctype engine(byte me)
{
    byte epoch, request, seen, page, entry, batches;
    bit heed_again;

    do
    :: batches < BATCHES ->
        batches++;
        /* _begin_batch */
        epoch = epoch + 2 - (epoch + 1) % 2;
        store_epoch(me, EPOCH(me), epoch);
        fence_batch;
        heed_shootdown();
        /* the batch: translate, and then the access */
        if
        :: page = 0
        :: page = 1
        :: page = GUESTS_PAGE
        fi;
        load(me, ENTRY(page), entry);
        if
        :: entry == 1 -> store(me, PAGE(page), 1)
        :: entry == 1 -> atomic { assert(!taken_away[page]) } /* it reads */
        :: else
        fi;
        entry = 0;
        page = 0;
        if
        :: batches < BATCHES
        :: /* _idle: it sleeps until it is woken, or for good */
            epoch++;
            store_epoch(me, EPOCH(me), epoch);
            fence_idle;
#ifndef NO_HEED_IDLE
            heed_shootdown();
#endif
end_asleep:
            if
            :: batches < BATCHES
            fi
        fi
    od
}

/* Shootdown.is_over */
inline look(page)
{
    k = 0;
    do
    :: k < ENGINES ->
        if
        :: waiting[page * ENGINES + k] != 0 ->
            load(HYP, EPOCH(k), epoch);
            if
            :: epoch != waiting[page * ENGINES + k] -> waiting[page * ENGINES + k] = 0
            :: else -> over = 0
            fi
        :: else
        fi;
        k++
    :: else -> break
    od
}

/* The hypervisor's loop: it begins shootdowns, and looks at those under way whenever it is woken. */
proctype hypervisor()
{
    byte waiting[PAGES * ENGINES], k, epoch, page, requests;
    bit begun[PAGES], over;

    do
    :: page < PAGES && !begun[page] ->
        begun[page] = 1;
        store(HYP, ENTRY(page), 0);
        fence_entries;
#ifdef EPOCH_AFTER_REQUEST
        requests++;
        store_release(HYP, REQUEST, requests);
        fence_request;
#endif
        over = 1;
        k = 0;
        do
        :: k < ENGINES ->
            load(HYP, EPOCH(k), epoch);
            if
            :: epoch % 2 == 1 -> waiting[page * ENGINES + k] = epoch; over = 0
            :: else
            fi;
            k++
        :: else -> break
        od;
#ifndef EPOCH_AFTER_REQUEST
        if
        :: !over ->
            requests++;
            store_release(HYP, REQUEST, requests);
            fence_request
        :: else
        fi;
#endif
        over = 1;
#ifndef NO_WAIT
        look(page);
#endif
        if
        :: over -> taken_away[page] = 1; page++
        :: else -> page++
        fi
    :: page > 0 && (!taken_away[0] || (page == PAGES && !taken_away[PAGES - 1])) ->
        /* _check_shootdowns */
        sleep(TO_HYP);
        k = 0;
        over = 1;
        look(0);
        taken_away[0] = taken_away[0] || over;
        if
        :: page == PAGES ->
            over = 1;
            look(1);
            taken_away[1] = taken_away[1] || over
        :: else
        fi
    :: page == PAGES && taken_away[0] && taken_away[PAGES - 1] -> break
    od
}

#ifdef STRICT
/* dma_unmap, _flush */
proctype guest()
{
    byte epoch, now;

    store(GUEST, ENTRY(GUESTS_PAGE), 0);
    fence_flush;
    load(GUEST, EPOCH(0), epoch);
    if
    :: epoch % 2 == 0
    :: else ->
#ifndef NO_WAIT
        do
        :: load(GUEST, EPOCH(0), now);
            if
            :: now != epoch -> break
            :: else
            fi
        od
#endif
    fi;
    taken_away[GUESTS_PAGE] = 1
}
#endif

init {
    byte p;

    d_step {
        mem[ENTRY(0)] = 1;
        mem[ENTRY(1)] = 1;
        mem[ENTRY(GUESTS_PAGE)] = 1
    }
    atomic {
        do
        :: p < PROCESSES -> run memory(p); p++
        :: else -> break
        od;
        p = 0;
        do
        :: p < ENGINES -> run engine(p); p++
        :: else -> break
        od;
#ifdef STRICT
        run guest()
#else
        run hypervisor()
#endif
    }
}
