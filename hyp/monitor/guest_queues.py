"""A guest's queues as its device model sees them (`m`: the MACHINE record, machine.py): descriptors in, completions out.

They lie in the guest's RAM: a descriptor is copied once, and the copy is judged (R3).
"""

from typing import Any

from hyp.abi.fragment import MORE
from hyp.abi.nic import CQE_BYTES, DESC_BYTES
from hyp.atomics import load64_once, u32_add, u32_sub
from hyp.frames import write_completion, write_fragment_completion
from hyp.kernels import compiled
from hyp.offload.frame import piece_length


@compiled
def sends_left(m: Any) -> Any:
    """Number of send descriptors posted and not yet taken."""
    return u32_sub(m.sq_prod, m.sq_cons)


@compiled
def buffers_left(m: Any) -> Any:
    """Number of receive buffers posted and not yet filled."""
    return u32_sub(m.rq_prod, m.rq_cons)


@compiled
def send_descriptor(m: Any, ahead: int) -> Any:
    """Copy of the send descriptor `ahead` of the next: (address, fragment word)."""
    slot = m.sq + (u32_add(m.sq_cons, ahead) & (m.sq_size - 1)) * DESC_BYTES
    return load64_once(slot), load64_once(slot + 8)


@compiled
def receive_descriptor(m: Any, ahead: int) -> Any:
    """Copy of the receive descriptor `ahead` of the next: (address, fragment word)."""
    slot = m.rq + (u32_add(m.rq_cons, ahead) & (m.rq_size - 1)) * DESC_BYTES
    return load64_once(slot), load64_once(slot + 8)


@compiled
def complete_send(m: Any, status: int) -> None:
    """Write the completion of the descriptor at `sq_cons`."""
    write_completion(m.scq + (m.scq_prod & (m.sq_size - 1)) * CQE_BYTES, m.sq_size, m.scq_prod, m.sq_cons, 0, status)
    m.scq_prod = u32_add(m.scq_prod, 1)


@compiled
def complete_receive(m: Any, length: int, status: int) -> None:
    """Write the completion of the buffer at `rq_cons` and use it up."""
    write_completion(m.rcq + (m.rcq_prod & (m.rq_size - 1)) * CQE_BYTES, m.rq_size, m.rcq_prod, m.rq_cons, length, status)
    m.rcq_prod = u32_add(m.rcq_prod, 1)
    m.rq_cons = u32_add(m.rq_cons, 1)


@compiled
def complete_fragments(m: Any, pieces: int, n: int, offload: int) -> None:
    """Complete the next `n` buffers, filled with a frame as `pieces` says. Last to first: who sees one sees those that follow."""
    for k in range(n - 1, -1, -1):
        prod = u32_add(m.rcq_prod, k)
        word = piece_length(pieces, k) | (MORE if k < n - 1 else 0) | (offload if k == 0 else 0)
        slot = m.rcq + (prod & (m.rq_size - 1)) * CQE_BYTES
        write_fragment_completion(slot, m.rq_size, prod, u32_add(m.rq_cons, k), word)
    m.rcq_prod = u32_add(m.rcq_prod, n)
    m.rq_cons = u32_add(m.rq_cons, n)
