/* A guest's device moves from one path to the other under load (docs/faults.md): from split, where Dom0 is between guest and NIC, to
   bypass; with -DTO_SPLIT the other way.

   Three streams of FRAMES: from the wire to the guest, from another split guest to it, and from it to the wire. Who has the guest's address
   is looked up in two places: by the NIC (its switch: the guest's context, or context 0, Dom0's) and by Dom0's bridge (the guest's vif,
   or the uplink). A look-up and the delivery by it are two steps; who finds the receiver full looks up again later. A frame that comes back
   to where it came from is dropped, as is one for a device that is not there.
   The move:
     1. the guest sends no more by the old device
     2. the new device is connected, its receive buffers are posted
     3. the address is switched: to bypass, in the NIC first and then in the bridge; to split, in the bridge first; and in
        between all that was looked up before is waited for, in engines and in Dom0's queues
     4. once nobody holds a frame for the old device the guest takes what that has received, and then what the new one has: without waiting
        for 5, since frames that nobody takes hold up Dom0's queue to the NIC, and what the guest has sent is in it
     5. once all that the guest has sent by the old device has left the NIC, which on the split path is more than that it has been answered,
        the guest sends by the new one
   Each queue here is a ring that other models are about; messages order all else.

   Holds: each stream arrives whole, once, in its order; the move comes to its end. */

#ifndef FRAMES
#define FRAMES 3
#endif
#define RING 2
#define SPLIT 0
#define BYPASS 1
#ifdef TO_SPLIT
#define OLD BYPASS
#define NEW SPLIT
#else
#define OLD SPLIT
#define NEW BYPASS
#endif
#define LOCAL 64 /* frames of the other split guest */

chan receive[2] = [RING] of { byte };   /* the guest's: its vif's ring, its context's queue */
chan send[2] = [RING] of { byte };
chan dom0_receive = [RING] of { byte }; /* context 0 */
chan dom0_send = [RING] of { byte };

byte nic_owner = OLD, bridge_owner = OLD;
bit connected[2];
bit sends_stopped, receives_drained, sends_drained;
bit nic_holds, nic_sends, bridge_holds, bridge_takes, dom0_sends; /* a frame is on its way there */
byte sent, left = 1, expected = 1, expected_local = LOCAL + 1;

#define has_room(queue) (len(queue) < RING)
#define fits(path) (has_room(receive[path]) || !connected[path])

inline deliver(path, frame)
{
    assert(connected[path]); /* else drop_down */
    receive[path]!frame
}

/* The wire sends to the guest by way of the NIC. */
proctype wire()
{
    byte k = 1, to;

    do
    :: k <= FRAMES ->
        atomic { nic_holds = 1; to = nic_owner };
        atomic {
            if
            :: to == BYPASS && fits(BYPASS) -> deliver(BYPASS, k); k++
            :: to == SPLIT && has_room(dom0_receive) -> dom0_receive!k; k++
            :: (to == BYPASS && !fits(BYPASS)) || (to == SPLIT && !has_room(dom0_receive))
            fi;
            nic_holds = 0
        };
        if
        :: nic_owner == BYPASS && fits(BYPASS)
        :: nic_owner == SPLIT && has_room(dom0_receive)
        :: k > FRAMES -> break
        fi
    :: else -> break
    od
}

/* Dom0 passes on what the NIC has given it. */
proctype from_uplink()
{
    byte to, frame;

end:
    do
    :: atomic { len(dom0_receive) > 0 -> bridge_takes = 1; to = bridge_owner };
        atomic {
            if
            :: to == BYPASS -> assert(false) /* drop_same_port */
            :: to == SPLIT && fits(SPLIT) -> dom0_receive?frame; deliver(SPLIT, frame)
            :: to == SPLIT && !fits(SPLIT)
            fi;
            bridge_takes = 0;
            frame = 0
        };
        fits(SPLIT) || bridge_owner == BYPASS
    od
}

/* Another split guest sends to this one: by the bridge, and to bypass on by the NIC. */
proctype neighbour()
{
    byte k = LOCAL + 1, to;

    do
    :: k <= LOCAL + FRAMES ->
        atomic { bridge_holds = 1; to = bridge_owner };
        atomic {
            if
            :: to == SPLIT && fits(SPLIT) -> deliver(SPLIT, k); k++
            :: to == BYPASS && has_room(dom0_send) -> dom0_send!k; k++
            :: (to == SPLIT && !fits(SPLIT)) || (to == BYPASS && !has_room(dom0_send))
            fi;
            bridge_holds = 0
        };
        if
        :: bridge_owner == SPLIT && fits(SPLIT)
        :: bridge_owner == BYPASS && has_room(dom0_send)
        :: k > LOCAL + FRAMES -> break
        fi
    :: else -> break
    od
}

/* What the guest sends on the split path: Dom0 posts it on its queue to the NIC. */
proctype from_vif()
{
    byte frame;

end:
    do
    :: atomic { send[SPLIT]?frame -> dom0_sends = 1 };
        dom0_send!frame;
        atomic { dom0_sends = 0; frame = 0 }
    od
}

/* The NIC takes what contexts send: to the wire, or from Dom0 to the guest. */
proctype nic()
{
    byte frame, to;

end:
    do
    :: atomic { send[BYPASS]?frame -> nic_sends = 1 };
        atomic { assert(frame == left); left++; frame = 0; nic_sends = 0 }
    :: atomic { dom0_send?<frame> -> nic_sends = 1; to = nic_owner };
        atomic {
            if
            :: frame < LOCAL -> dom0_send?frame; assert(frame == left); left++
            :: frame > LOCAL && to == SPLIT -> assert(false) /* drop_same_port */
            :: frame > LOCAL && to == BYPASS && fits(BYPASS) -> dom0_send?frame; deliver(BYPASS, frame)
            :: frame > LOCAL && to == BYPASS && !fits(BYPASS)
            fi;
            frame = 0;
            nic_sends = 0
        };
        empty(dom0_send) || fits(BYPASS) || nic_owner == SPLIT
    od
}

/* The toolstack and the hypervisor. */
inline past_nic() { atomic { !nic_holds && !nic_sends } }
inline past_bridge() { atomic { !bridge_holds && !bridge_takes } }

proctype mover()
{
    sends_stopped;
#ifndef SWITCHED_UNCONNECTED
    connected[NEW] = 1;
#endif
#ifdef TO_SPLIT
#ifdef WRONG_ORDER
    nic_owner = SPLIT;
    past_nic();
#endif
    bridge_owner = SPLIT;
#ifndef NO_QUIESCE_BRIDGE
    past_bridge();
#endif
#ifndef NO_EMPTY_QUEUE
    empty(dom0_send);
#endif
    nic_owner = SPLIT;
#ifndef NO_QUIESCE_NIC
    past_nic();
#endif
#else
#ifdef WRONG_ORDER
    bridge_owner = BYPASS;
    past_bridge();
#endif
    nic_owner = BYPASS;
#ifndef NO_QUIESCE_NIC
    past_nic();
#endif
#ifndef NO_EMPTY_QUEUE
    empty(dom0_receive);
#endif
    bridge_owner = BYPASS;
#ifndef NO_QUIESCE_BRIDGE
    past_bridge();
#endif
#endif
#ifdef SWITCHED_UNCONNECTED
    connected[NEW] = 1;
#endif
    receives_drained = 1;
    /* the old device's sends: answered, and gone from the NIC */
    empty(send[OLD]);
#ifndef NO_SEND_DRAIN
    left == sent + 1;
#endif
    sends_drained = 1
}

inline take(path)
{
    atomic { receive[path]?frame ->
        if
        :: frame < LOCAL -> assert(frame == expected); expected++
        :: else -> assert(frame == expected_local); expected_local++
        fi;
        frame = 0 }
}

#define post(path, may) atomic { (may) && sent < FRAMES && has_room(send[path]) -> sent++; send[path]!sent }

proctype guest()
{
    byte frame;

    do
    :: post(OLD, true)
    :: take(OLD)
    :: break
    od;
    sends_stopped = 1;
    do
    :: take(OLD)
#ifdef SENDS_AT_ONCE
    :: post(NEW, connected[NEW])
#endif
#ifdef RECEIVES_AT_ONCE
    :: take(NEW)
#endif
#ifdef DRAINED_TOGETHER
    :: receives_drained && sends_drained -> break
#else
    :: receives_drained -> break
#endif
    od;
#ifndef NO_LAST_LOOK
    do
    :: take(OLD)
    :: empty(receive[OLD]) -> break
    od;
#endif
    do
    :: post(NEW, sends_drained)
    :: take(NEW)
    :: sent == FRAMES && left == FRAMES + 1 && expected == FRAMES + 1 && expected_local == LOCAL + FRAMES + 1 -> break
    od
}

init {
    atomic {
        connected[OLD] = 1;
        run wire();
        run from_uplink();
        run neighbour();
        run from_vif();
        run nic();
        run mover();
        run guest()
    }
}
