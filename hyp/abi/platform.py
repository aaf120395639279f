"""Pages by which the hypervisor and the NIC's engines tell each other, and everybody, what they must know.

*Platform page*: written by the hypervisor alone, mapped read-only by every other process::

     0 u64 generation          counts the hypervisor's starts
    64 u64 spin_limit_ns       longest a loop may spin before it sleeps; 0 when loops outnumber cores. A hint
   128 u64 shootdown_request   counts shootdowns an engine has not been past yet (see hyp/iommu.py); release
   192 u64 hypercall_ns        prices of the model (see hyp/model/price.py): what an operation costs in addition. Hints
   200 u64 trap_ns
   208 u64 grant_map_ns
   216 u64 event_ns
   256 u64 keep_armed          ablation (see hyp/model/ablation.py): hold-off is off. Hints, like the two that follow
   264 u64 copy_limit          ablation: netback's grant copies take no more bytes of a frame; 0: all
   272 u64 bounce              ablation: a bypass guest copies each frame once more before it posts it

*Engine page*, one per NIC engine: written by that engine alone, mapped read-only by the hypervisor::

     0 u64 epoch               odd: the engine is in a batch and may use translations it has looked up; even: it is not
    64 .. CHECKPOINT[CONTEXTS] per context, published per batch, after the completions: what a restarted engine needs

The engine never reads back what it publishes here.
"""

from typing import Final

import numpy as np

from hyp.abi.nic import CONTEXTS, PAGE

GENERATION: Final = 0
SPIN_LIMIT_NS: Final = 64
SHOOTDOWN_REQUEST: Final = 128
HYPERCALL_PRICE: Final = 192
TRAP_PRICE: Final = 200
GRANT_MAP_PRICE: Final = 208
EVENT_PRICE: Final = 216
KEEP_ARMED: Final = 256
COPY_LIMIT: Final = 264
BOUNCE: Final = 272
PLATFORM_BYTES: Final = PAGE

EPOCH: Final = 0
CHECKPOINTS: Final = 64
CHECKPOINT: Final = np.dtype([("sq_cons", "<u4"), ("rq_cons", "<u4"), ("scq_prod", "<u4"), ("rcq_prod", "<u4")])
CHECKPOINT_BYTES: Final = 16
ENGINE_BYTES: Final = PAGE * (-(-(CHECKPOINTS + CHECKPOINT_BYTES * CONTEXTS) // PAGE))
