"""Ablation: parts of a path taken away, or one added, so that a benchmark can say what each is worth. Never on but in a benchmark.

===============  ========================================================================================================
``keep_armed``   hold-off off: whoever consumes asks for a notification of every batch, even while it is awake
``copy_limit``   netback copies no more than so many bytes of each frame that a guest sends: Dom0's hop without the copy. What is
                 beyond is whatever Dom0's buffer held, so only streams whose payload is "header" arrive intact
``bounce``       a guest on bypass or native copies every frame once more before it posts it: a copy without Dom0's hop
===============  ========================================================================================================

The switches lie in the platform page, which the hypervisor alone writes; loops read them once a batch.
"""

from hyp.abi.platform import BOUNCE, COPY_LIMIT, KEEP_ARMED
from hyp.atomics import load64_once
from hyp.kernels import compiled

SWITCHES = {"keep_armed": KEEP_ARMED, "copy_limit": COPY_LIMIT, "bounce": BOUNCE}


@compiled
def ablated(platform: int, offset: int) -> int:
    """A switch's value; 0 is off."""
    value: int = load64_once(platform + offset)
    return value
