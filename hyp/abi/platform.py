"""Pages by which the hypervisor and the NIC's engines tell each other, and everybody, what they must know.

*Platform page*: written by the hypervisor alone, mapped read-only by every other process::

     0 u64 generation          counts the hypervisor's starts
    64 u64 spin_limit_ns       longest a loop may spin before it sleeps; 0 when loops outnumber cores. A hint
    72 u64 fair_notify_ns      what a notification may take before its waiter owes for it (see hyp/events.py)
  128 u64 shootdown_request   counts shootdowns an engine has not been past yet (see hyp/iommu.py); release
   192 u64 keep_armed          ablation (see hyp/model/ablation.py): hold-off is off. Hints, like all that follow
   200 u64 copy_limit          ablation: netback's grant copies take no more bytes of a frame; 0: all
   208 u64 bounce              ablation: a bypass guest copies each frame once more before it posts it
   256 u64 hypercall_ns        prices of the model (see hyp/model/operations.py): what an operation costs in addition
   264 u64 vm_exit_ns
   272 u64 event_send_ns
   280 u64 domain_switch_ns
   288 u64 interrupt_ns
   296 u64 grant_map_ns
   304 u64 grant_unmap_ns
   312 u64 grant_flush_ns
   320 u64 grant_copy_ns
   328 u64 grant_copy_ps_per_byte
   336 u64 iommu_map_ns
   344 u64 iommu_unmap_ns
   352 u64 iommu_flush_ns
   360 u64 dma_ps_per_byte

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
FAIR_NOTIFY_NS: Final = 72
SHOOTDOWN_REQUEST: Final = 128
KEEP_ARMED: Final = 192
COPY_LIMIT: Final = 200
BOUNCE: Final = 208
PRICES_AT: Final = 256
HYPERCALL_PRICE: Final = 256
VM_EXIT_PRICE: Final = 264
EVENT_SEND_PRICE: Final = 272
DOMAIN_SWITCH_PRICE: Final = 280
INTERRUPT_PRICE: Final = 288
GRANT_MAP_PRICE: Final = 296
GRANT_UNMAP_PRICE: Final = 304
GRANT_FLUSH_PRICE: Final = 312
GRANT_COPY_PRICE: Final = 320
GRANT_COPY_BYTE_PRICE: Final = 328
IOMMU_MAP_PRICE: Final = 336
IOMMU_UNMAP_PRICE: Final = 344
IOMMU_FLUSH_PRICE: Final = 352
DMA_BYTE_PRICE: Final = 360
PLATFORM_BYTES: Final = PAGE

EPOCH: Final = 0
CHECKPOINTS: Final = 64
CHECKPOINT: Final = np.dtype([("sq_cons", "<u4"), ("rq_cons", "<u4"), ("scq_prod", "<u4"), ("rcq_prod", "<u4")])
CHECKPOINT_BYTES: Final = 16
ENGINE_BYTES: Final = PAGE * (-(-(CHECKPOINTS + CHECKPOINT_BYTES * CONTEXTS) // PAGE))
