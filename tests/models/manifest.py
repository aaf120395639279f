"""What is checked, and what each barrier, look and order in a model stands for in the code.

A *seed* takes one of them away by a macro of the model; the checker must then find a violation. What it does not find is in here
too, with the reason (`superfluous`): such a seed must hold.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Seed:
    """A bug: `macro` takes `what` away. `code`: ``file:function`` where that is, maybe several of them."""

    macro: str
    what: str
    code: str
    defines: tuple[str, ...] = ()
    """What it takes to be seen, beside the macro."""
    superfluous: str = ""
    """Why nothing is found without it."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A model with these macros. `long`: takes more than some seconds."""

    defines: tuple[str, ...] = ()
    long: bool = False
    ltl: bool = False
    """Check the model's formula `served` in place of end states and assertions."""


@dataclass(frozen=True, slots=True)
class Model:
    """A ``.pml`` file. A variant holds: no assertion fails, and nobody waits for good who should not; each seed is caught."""

    name: str
    about: str
    variants: tuple[Variant, ...]
    seeds: tuple[Seed, ...]
    base: tuple[str, ...] = field(default=())
    """Macros with which seeds are tried."""


PSO = ("PSO",)
ON_TSO = "a store does not overtake an older one on x86; the compiler and other machines may let it: with PSO it is caught"
MOVES = tuple(
    Seed(macro, what, code, defines)
    for defines in ((), ("TO_SPLIT",))
    for macro, what, code in (
        ("SENDS_AT_ONCE", "the new device sends only when the old one's sends have left", "lab/move.py:move"),
        ("RECEIVES_AT_ONCE", "what the new device received comes after all of the old one's", "domu/move.py:receive"),
        ("NO_LAST_LOOK", "the old receive queue is emptied once nobody holds a frame for it", "domu/move.py:_empty"),
        ("NO_QUIESCE_NIC", "engines are past the batch in which they looked the address up", "dom0/toolstack/moves.py:switch"),
        ("NO_QUIESCE_BRIDGE", "Dom0 is past the round in which it looked the address up", "dom0/toolstack/moves.py:switch"),
        ("NO_EMPTY_QUEUE", "Dom0's queue is empty between the two switches", "dom0/toolstack/moves.py:switch"),
        (
            "WRONG_ORDER",
            "to bypass the NIC is switched before the bridge; to split the bridge before the NIC",
            "dom0/toolstack/moves.py:switch",
        ),
        ("SWITCHED_UNCONNECTED", "the new device is connected before the switch", "lab/move.py:move"),
    )
)

MODELS = (
    Model(
        "holdoff", "Xen's ring: requests, responses, and the hold-off of notifications",
        (Variant(), Variant(PSO), Variant(ltl=True)),
        (
            Seed("NO_FENCE_PUBLISH", "fence between a producer index and the event index", "hyp/ring.py:_publish"),
            Seed("NO_FENCE_ARM_REQUESTS", "fence between req_event and the look at req_prod", "hyp/ring.py:arm_requests"),
            Seed("NO_FENCE_ARM_RESPONSES", "fence between rsp_event and the look at rsp_prod", "hyp/ring.py:arm_responses"),
            Seed("NO_RECHECK_ARM_REQUESTS", "look at req_prod before sleep", "hyp/ring.py:arm_requests"),
            Seed("NO_RECHECK_ARM_RESPONSES", "look at rsp_prod before sleep", "hyp/ring.py:arm_responses"),
            Seed("NO_ACQUIRE_REQUESTS", "req_prod before the slot", "hyp/ring.py:unconsumed_requests"),
            Seed("NO_ACQUIRE_RESPONSES", "rsp_prod before the slot", "hyp/ring.py:unconsumed_responses"),
            Seed("NO_RELEASE_PUBLISH", "slots before the producer index", "hyp/ring.py:_publish", PSO),
            Seed("NO_RELEASE_PUBLISH", "the same, on x86 alone", "hyp/ring.py:_publish", superfluous=ON_TSO),
            Seed("NOTIFY_IF_EQUAL", "a batch that goes beyond the event index notifies", "hyp/events.py:passed"),
            Seed("NO_TELL_BEFORE_SLEEP", "events owed are sent before sleep", "dom0/engine.py:run dom0/netback.py:tell_guest"),
        ),
    ),
    Model(
        "doorbell", "a context's send queue: doorbell and arm, the NIC's sleep and the guest's",
        (Variant(), Variant(PSO), Variant(ltl=True)),
        (
            Seed("NO_FENCE_TELL", "fence between sq_prod and the look at sq_event", "hyp/verbs.py:_tell"),
            Seed("NO_FENCE_ARM_SENDS", "fence between scq_event and the look at the queue", "domu/frontends/bypass.py:arm_queues"),
            Seed("NO_FENCE_ARM_NIC", "fence between sq_event and the look at sq_prod", "nic/engine.py:_arm"),
            Seed("NO_FENCE_PUBLISH", "fence between completions and the look at scq_event", "nic/publish.py:publish"),
            Seed("NO_RECHECK_ARM_SENDS", "look at the completion queue before sleep", "hyp/verbs.py:sends_completed"),
            Seed("NO_RECHECK_ARM_NIC", "look at all doorbells before sleep", "nic/engine.py:_has_work"),
            Seed("NO_ACQUIRE_DOORBELL", "sq_prod before the descriptor", "nic/queues.py:posted_sends"),
            Seed("NO_ACQUIRE_COMPLETION", "owner bit before the completion's index", "hyp/verbs.py:_completed"),
            Seed("NO_RELEASE_DOORBELL", "descriptors before sq_prod", "hyp/verbs.py:_publish", PSO),
            Seed("NO_RELEASE_DOORBELL", "the same, on x86 alone", "hyp/verbs.py:_publish", superfluous=ON_TSO),
            Seed("NO_RELEASE_OWNER", "a completion's index before its owner bit", "hyp/frames.py:write_completion", PSO),
            Seed("NO_RELEASE_OWNER", "the same, on x86 alone", "hyp/frames.py:write_completion", superfluous=ON_TSO),
            Seed("NO_TELL_BEFORE_SLEEP", "what was published untold is told before sleep", "domu/frontends/bypass.py:arm_queues"),
            Seed("NO_TELL_BEFORE_SLEEP_NIC", "a notification held back is sent before sleep", "nic/publish.py:_tell_driver"),
        ),
    ),
    Model(
        "deregistration", "the shootdown of a translation, waited for by a signal or by polling",
        (Variant(), Variant(PSO), Variant(("STRICT",)), Variant(("STRICT", "PSO")), Variant(("ENGINES=2", "BATCHES=1"), long=True)),
        (
            Seed("NO_FENCE_ENTRIES", "fence between cleared entries and the look at epochs", "hyp/iommu.py:_write_entries"),
            Seed("NO_FENCE_REQUEST", "fence between the request and the look at epochs", "hyp/iommu.py:_count_request"),
            Seed("NO_FENCE_BATCH", "fence between a batch's epoch and its first look-up", "nic/engine.py:_begin_batch"),
            Seed("NO_FENCE_IDLE", "fence between the even epoch and the look for a request", "nic/engine.py:_idle"),
            Seed("NO_HEED_IDLE", "look for a request before sleep", "nic/engine.py:_idle"),
            Seed("NO_HEED_AGAIN", "a request is answered at the next boundary, too", "nic/engine.py:_heed_shootdown"),
            Seed("EPOCH_AFTER_REQUEST", "epochs are read before the request is made", "hyp/iommu.py:Shootdown"),
            Seed("NO_WAIT", "deregistration waits", "hyp/monitor/nic.py:shootdown"),
            Seed("NO_RELEASE_EPOCH", "a batch's accesses before the next epoch", "nic/engine.py:_begin_batch", PSO),
            Seed("NO_RELEASE_EPOCH", "the same, on x86 alone", "nic/engine.py:_begin_batch", superfluous=ON_TSO),
            Seed("NO_FENCE_FLUSH", "strict: fence between cleared entries and epoch", "hyp/monitor/dma.py:_flush", ("STRICT",)),
            Seed("NO_WAIT", "strict: unmapping waits", "hyp/monitor/dma.py:dma_unmap", ("STRICT",)),
        ),
    ),
    Model(
        "checkpoint", "a NIC that is killed, and the next one, which goes on from checkpoint pages and queues",
        (Variant(), Variant(PSO), Variant(("KILLS=2", "FRAMES=3"), long=True)),
        (
            Seed("NO_SCAN_SENDS", "send completions since the checkpoint are looked for", "nic/resume.py:_find_sends"),
            Seed("NO_SCAN_RECEIVES", "receive completions are looked for", "nic/resume.py:_find_receives"),
            Seed("SCAN_RECEIVES_FROM_CHECKPOINT", "none from before rq_prod - size", "nic/resume.py:_find_receives"),
            Seed("NO_KICK", "each completion queue is kicked once", "hyp/monitor/contexts.py:_hand_over"),
            Seed("NO_DOORBELL_SCAN", "all doorbells are looked at before the first sleep", "nic/engine.py:run"),
            Seed("NO_CHECKPOINT_AT_RECOVERY", "that is stored at once", "nic/resume.py:resume", ("KILLS=2", "FRAMES=3")),
            Seed("NO_REAP", "the dead NIC's stores are in memory before", "lab/keeper/keeper.py:_restart"),
            Seed("CHECKPOINT_FIRST", "delivery and completions before the checkpoint", "nic/resume.py:checkpoint"),
            Seed("COMPLETE_FIRST", "delivery before the send's completion", "nic/send.py:_send_run"),
            Seed("NO_RELEASE_OWNER", "the frame before its completion's owner bit", "hyp/frames.py:write_completion", PSO),
            Seed("NO_RELEASE_OWNER", "the same, on x86 alone", "hyp/frames.py:write_completion", superfluous=ON_TSO),
        ),
    ),
    Model(
        "reconnect", "the two ends of a vif, either of which dies at any moment",
        (
            Variant(("DOM0_KILLS=1",)), Variant(("DOM0_KILLS=2", "GUEST_KILLS=0")),
            Variant(("DOM0_KILLS=2", "GUEST_KILLS=1", "FRAMES=2"), long=True),
        ),
        (
            Seed("OVERWRITE", "a back end's state is not told over what the toolstack has written", "dom0/vifs.py:_switch"),
            Seed("OFFERS_APART", "offers and InitWait are one transaction", "dom0/vifs.py:_probe"),
            Seed("NO_DISCONNECT", "a device made anew is disconnected first", "dom0/vifs.py:_back_written"),
            Seed("ANSWER_FIRST", "a frame is posted before its request is answered", "dom0/engine.py:_serve_port"),
            Seed("OFFERS_READ_APART", "InitWait and offers are read in one transaction", "domu/frontends/split_follow.py:_offers"),
            Seed("NODES_APART", "nodes and Connected are one transaction", "domu/frontends/split_follow.py:tell_connected"),
            Seed("NO_FRONT_RESET", "both ends are set back together", "dom0/toolstack/libxl.py:create_vif"),
            Seed("NO_OWN_STATE_CHECK", "its own state says that it was made anew", "domu/frontends/split_follow.py:_look"),
            Seed("NO_FIRST_EVENT", "a watch fires when it is set", "dom0/xenstore/requests.py:_watch"),
            Seed("NO_RESEND", "requests without an answer are sent again", "domu/frontends/split_again.py:resend"),
            Seed("NO_DRAIN", "the NIC empties a dead Dom0's send queue first", "nic/device.py:_drain"),
        ),
        ("DOM0_KILLS=1",),
    ),
    Model(
        "move", "a guest's device that moves between split and bypass",
        (
            Variant(("FRAMES=2",)), Variant(("TO_SPLIT", "FRAMES=2")),
            Variant(long=True), Variant(("TO_SPLIT",), long=True),
        ),
        (
            *MOVES,
            Seed(
                "NO_SEND_DRAIN",
                "what Dom0 has answered has left the NIC before the new device sends",
                "dom0/toolstack/moves.py:settle",
            ),
            Seed("NO_SEND_DRAIN", "the same, to split", "dom0/toolstack/moves.py:settle", ("TO_SPLIT",),
                 superfluous="one engine takes one frame after the other: a send that is completed is in front of all later ones"),
            Seed("DRAINED_TOGETHER", "new frames are taken without waiting for the old device's sends", "domu/move.py:receive"),
            Seed("DRAINED_TOGETHER", "the same, to split", "domu/move.py:receive", ("TO_SPLIT",),
                 superfluous="the guest's own context sends: nobody's frame for the guest can be in front of its sends"),
        ),
        ("FRAMES=2",),
    ),
)  # fmt: skip
