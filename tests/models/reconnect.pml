/* A vif's two ends find each other again (dom0/xenbus_states.py, dom0/vifs.py, dom0/vif_connection.py; domu/frontends/split.py;
   docs/faults.md), whichever dies, at any step.

   xenstored makes one change after the other; a watch says that something changed, and its owner reads what is there by then. Each
   connection has rings of its own, numbered. Dom0 answers a request once its frame is on its queue to the NIC. Dom0 dies up to DOM0_KILLS
   times: what it had taken is gone; its queue to the NIC is emptied by the NIC before that is let go; its toolstack makes the
   nodes of both ends anew. The guest dies up to GUEST_KILLS times, with all that it had not sent; the toolstack makes the nodes anew.
   There is no store buffer here: messages order everything, and the rings are holdoff.pml's.

   Holds: when the front end believes that it is connected, the back end is, to the same rings; both come to that; of what a guest
   that lives has sent none is lost, the order is kept, and a death of Dom0 repeats no more than a ring. */

#ifndef DOM0_KILLS
#define DOM0_KILLS 2
#endif
#ifndef GUEST_KILLS
#define GUEST_KILLS 1
#endif
#ifndef FRAMES
#define FRAMES 3
#endif
#define RING 2
#define GENERATIONS 9

#define INITIALISING 1
#define INIT_WAIT 2
#define CONNECTED 4
#define CLOSING 5
#define CLOSED 6

/* xenstore */
byte back_state = INITIALISING, front_state = INITIALISING, node_rings;
bit offers;
bit watch_front = 1, watch_back_own = 1, watch_back_other = 1;

/* rings of each generation, in the guest's RAM */
chan requests[GENERATIONS] = [RING] of { byte };
chan responses[GENERATIONS] = [RING] of { byte };
chan uplink = [RING] of { byte };

byte rings;          /* the front end's generation */
byte connected_to;   /* the back end's; 0: none */
byte life;           /* of the guest */
byte expected = 1, repeated;
bit kill_dom0, kill_guest;
byte dom0_kills, guest_kills;
bit guest_done;

#define number(frame) ((frame) & 15)
#define life_of(frame) ((frame) >> 4)

/* The toolstack: one transaction. */
inline make_anew()
{
    atomic {
        back_state = INITIALISING;
#ifndef NO_FRONT_RESET
        front_state = INITIALISING;
#endif
        offers = 0;
        node_rings = 0;
        watch_front = 1;
        watch_back_own = 1;
        watch_back_other = 1
    }
}

/* --- the front end ---------------------------------------------------------------------------------------------------- */

/* Detached: wait for InitWait, new rings, nodes, Connected; wait for the back end's Connected; then attached: what has no answer is
   asked for again, in its order, and then what is new. */
inline converse()
{
reconnect:
    do
#ifdef OFFERS_READ_APART
    :: back_state == INIT_WAIT -> assert(offers); break
#else
    :: atomic { back_state == INIT_WAIT -> assert(offers && connected_to == 0); break } /* state and offers, by one transaction */
#endif
    :: else -> atomic { watch_front -> watch_front = 0 }
    od;
    atomic { own = 0; rings++; assert(rings < GENERATIONS); again = oldest };
#ifdef NODES_APART
    node_rings = rings;
    atomic { front_state = CONNECTED; watch_back_other = 1; watch_front = 1 };
#else
    atomic { node_rings = rings; front_state = CONNECTED; watch_back_other = 1; watch_front = 1 };
#endif
    do
    :: atomic { watch_front -> watch_front = 0 };
        if
        :: atomic { back_state == CONNECTED -> assert(connected_to == rings || connected_to == 0); break } /* 0: Dom0 has died */
        :: else
        fi;
#ifndef NO_OWN_STATE_CHECK
        if
        :: front_state != CONNECTED -> goto reconnect /* the nodes were made anew meanwhile */
        :: else
        fi
#endif
    od;
#ifdef NO_FIRST_EVENT
    watch_front = 0;
#else
    watch_front = 1; /* another watch, which fires when it is set: what came since is looked at */
#endif
#ifdef NO_RESEND
    again = next;
    oldest = next;
#endif
    do
    :: atomic { watch_front -> watch_front = 0 };
        if
        :: back_state == INITIALISING || back_state == INIT_WAIT -> goto reconnect
        :: else
        fi
    :: atomic { responses[rings]?[frame] -> responses[rings]?frame;
        assert(number(frame) == oldest);
        oldest++;
        own--;
        frame = 0 }
    :: atomic { again < next && own < RING -> requests[rings]!(life << 4) + again; own++; again++ }
    :: atomic { again == next && next <= FRAMES && own < RING -> requests[rings]!(life << 4) + next; own++; next++; again++ }
    :: atomic { oldest > FRAMES -> guest_done = 1 }; break
    od;
end_done:
    false
}

proctype front()
{
    byte oldest = 1, next = 1, again = 1, own, frame;

    do
    :: { converse() } unless { atomic { kill_guest && !guest_done ->
            kill_guest = 0;
            guest_kills++;
            life++;
            oldest = 1;
            next = 1;
            again = 1;
            expected = 1 } };
        make_anew()
    od
}

/* --- the back end ------------------------------------------------------------------------------------------------------ */

/* _switch: not over what the toolstack has written since the state was told last, of which there is an event. */
inline switch_back(state)
{
    atomic {
        if
#ifdef OVERWRITE
        :: true ->
#else
        :: back_state == told ->
#endif
            back_state = state;
            told = state;
            watch_front = 1;
            watch_back_own = 1
        :: else
        fi
    }
}

/* _probe: what is on offer, and InitWait, in one transaction. */
inline probe()
{
    back = INITIALISING;
#ifdef OFFERS_APART
    offers = 1;
    switch_back(INIT_WAIT);
#else
    atomic { if :: back_state == told -> offers = 1 :: else fi; switch_back(INIT_WAIT) };
#endif
    back = INIT_WAIT;
    watch_back_other = 1
}

inline serve()
{
end_serving:
    do
    :: atomic { watch_back_own -> watch_back_own = 0; told = back_state };
        if
        :: told == INITIALISING && back != INITIALISING ->
#ifndef NO_DISCONNECT
            connected_to = 0;
#endif
            probe()
        :: else
        fi
    :: atomic { back != CLOSED && watch_back_other -> watch_back_other = 0 };
        front_seen = front_state;
        if
        :: front_seen == CONNECTED && back == INIT_WAIT ->
            mine = node_rings; /* by one transaction, with the state */
            assert(mine != 0 || back_state != told); /* else it refuses, for good */
            if
            :: mine != 0 -> connected_to = mine; back = CONNECTED; switch_back(CONNECTED)
            :: else -> skip
            fi
        :: front_seen == INITIALISING && back == CONNECTED ->
            connected_to = 0;
            back = CLOSING;
            switch_back(CLOSING);
            switch_back(CLOSED);
            back = INIT_WAIT;
            switch_back(INIT_WAIT)
        :: else
        fi;
        front_seen = 0;
        mine = 0
    :: atomic { connected_to != 0 && requests[connected_to]?[frame] && nfull(uplink) -> requests[connected_to]?frame };
#ifdef ANSWER_FIRST
        responses[connected_to]!frame;
        uplink!frame;
#else
        uplink!frame;
        responses[connected_to]!frame;
#endif
        frame = 0
    od
}

proctype dom0()
{
    byte back = CLOSED, told = INITIALISING, front_seen, mine, frame;

    do
    :: { serve() } unless { atomic { kill_dom0 -> kill_dom0 = 0; dom0_kills++; connected_to = 0; back = CLOSED; told = 0; front_seen = 0; mine = 0; frame = 0 } };
#ifdef NO_DRAIN
        do
        :: uplink?frame
        :: empty(uplink) -> break
        od;
#else
        empty(uplink);
#endif
        make_anew()
    od
}

/* --- who takes what Dom0 has posted, and who kills --------------------------------------------------------------------- */

proctype nic()
{
    byte frame;

end:
    do
    :: atomic { uplink?frame ->
        if
        :: life_of(frame) != life /* of a guest that is dead */
        :: life_of(frame) == life && number(frame) == expected -> expected++
        :: else ->
            assert(number(frame) < expected); /* none was left out */
            repeated++;
            assert(repeated <= RING * dom0_kills)
        fi;
        frame = 0 }
    od
}

proctype killer()
{
end:
    do
    :: atomic { !kill_dom0 && dom0_kills < DOM0_KILLS -> kill_dom0 = 1 }
    :: atomic { !kill_guest && guest_kills < GUEST_KILLS && !guest_done -> kill_guest = 1 }
    od
}

init {
    atomic {
        run front();
        run dom0();
        run nic();
        run killer()
    }
}
