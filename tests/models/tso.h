/* Memory with store buffers, for the models beside this file.

   A store goes into its process's buffer, in order; `memory` writes the buffers out, one store at a time, whenever it likes. A load
   sees its own process's newest store to that word, else memory. A fence waits until the buffer is empty. That is x86-TSO (Owens,
   Sarkar, Sewell 2009).

   With -DPSO a store may leave the buffer in front of older ones to other words, unless it is a release: what the compiler, and
   machines such as Arm, may do to plain stores. A release that has become a plain store shows with -DPSO only. Loads are made in
   the order in which they are written here; an acquire that is missing is a load that the model makes too early.

   A model defines PROCESSES (numbered from 0; each has a buffer), WORDS of shared memory, and may define STORED(p, a, v): what to check
   when a store reaches memory. Values are bytes; free-running indices wrap at WRAP. */

#ifndef DEPTH
#define DEPTH 4
#endif
#ifndef WRAP
#define WRAP 8
#endif
#ifndef STORED
#define STORED(p, a, v)
#endif

#define plus(a, b) (((a) + (b)) & (WRAP - 1))
#define minus(a, b) (((a) + WRAP - (b)) & (WRAP - 1))

/* hyp/events.py `passed` */
#define passed(event, old, new) (minus(new, event) < minus(new, old))

byte mem[WORDS];

typedef Buffer {
    byte n;
    byte addr[DEPTH];
    byte val[DEPTH];
    bit release[DEPTH]
};
Buffer buffer[PROCESSES];
byte tso_k;

inline put_store(p, a, v, is_release)
{
    d_step {
        buffer[p].n < DEPTH ->
        buffer[p].addr[buffer[p].n] = a;
        buffer[p].val[buffer[p].n] = v;
        buffer[p].release[buffer[p].n] = is_release;
        buffer[p].n++
    }
}

#define store(p, a, v) put_store(p, a, v, 0)
#define store_release(p, a, v) put_store(p, a, v, 1)

inline load(p, a, into)
{
    d_step {
        into = mem[a];
        tso_k = 0;
        do
        :: tso_k < buffer[p].n ->
            if
            :: buffer[p].addr[tso_k] == a -> into = buffer[p].val[tso_k]
            :: else
            fi;
            tso_k++
        :: else -> break
        od;
        tso_k = 0
    }
}

#define fence(p) (buffer[p].n == 0)

/* An eventfd (R6): what its notifier stored before is visible to who is woken by it. A wake-up is an edge. The system call drains the
   notifier's buffer on x86; nothing relies on that, so it does only where a model says so, to have fewer states. */
#ifdef NOTIFY_DRAINS
inline notify(p, event)
{
    atomic { fence(p) -> mem[event] = 1 }
}
#else
#define notify(p, event) put_store(p, event, 1, 1)
#endif

inline sleep(event)
{
    atomic { mem[event] == 1 -> mem[event] = 0 }
}

/* Store k of buffer p reaches memory. */
inline write_out(p, k)
{
    mem[buffer[p].addr[k]] = buffer[p].val[k];
    STORED(p, buffer[p].addr[k], buffer[p].val[k]);
    buffer[p].n--;
    tso_k = k;
    do
    :: tso_k < buffer[p].n ->
        buffer[p].addr[tso_k] = buffer[p].addr[tso_k + 1];
        buffer[p].val[tso_k] = buffer[p].val[tso_k + 1];
        buffer[p].release[tso_k] = buffer[p].release[tso_k + 1];
        tso_k++
    :: else -> break
    od;
    buffer[p].addr[buffer[p].n] = 0;
    buffer[p].val[buffer[p].n] = 0;
    buffer[p].release[buffer[p].n] = 0;
    tso_k = 0
}

#ifdef PSO
/* Store 1 may go before store 0, and so on. */
#define apart(p, i, k) (buffer[p].addr[i] != buffer[p].addr[k] && !buffer[p].release[k])
#define may_overtake_1(p) (buffer[p].n > 1 && apart(p, 0, 1))
#define may_overtake_2(p) (buffer[p].n > 2 && apart(p, 0, 2) && apart(p, 1, 2))
#define may_overtake_3(p) (buffer[p].n > 3 && apart(p, 0, 3) && apart(p, 1, 3) && apart(p, 2, 3))
#endif

proctype memory(byte p)
{
end:
    do
    :: d_step { buffer[p].n > 0 -> write_out(p, 0) }
#ifdef PSO
    :: d_step { may_overtake_1(p) -> write_out(p, 1) }
    :: d_step { may_overtake_2(p) -> write_out(p, 2) }
    :: d_step { may_overtake_3(p) -> write_out(p, 3) }
#endif
    od
}
