"""Memory ordering, copies and the few system calls that compiled code makes. Nothing else in the tree names an atomic.

Every value is an int64 and every address is an int64: loads zero-extend, stores truncate. So no kernel mixes signed and
unsigned, and the 32-bit indices of the rings wrap where they must: in `u32_add` and `u32_sub`, nowhere else.

Which load to use:

=====================  ==========================================================================================
``load*_acquire``      an index a peer publishes; what it published before is visible after
``load*_once``         anything else a peer can write; the compiler may neither repeat nor invent the load (R3)
``load*``              memory that only this thread writes; free to be vectorised
=====================  ==========================================================================================
"""

import platform
import time
from typing import Any

import numba
import numba.core.cgutils
import numba.extending
from llvmlite import ir
from numba.core import types

from hyp.kernels import compiled, i64, void

intrinsic: Any = numba.extending.intrinsic
cgutils: Any = numba.core.cgutils

CACHE_LINE = 64
_I1, _I8, _I32, _I64 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
_PTR = _I8.as_pointer()


def _load(bits: int, order: str | None) -> Any:
    @intrinsic
    def load(typing_context, addr):
        def generate(context, builder, signature, args):
            pointer = builder.inttoptr(args[0], ir.IntType(bits).as_pointer())
            plain = order is None
            value = builder.load(pointer, align=1) if plain else builder.load_atomic(pointer, order, bits // 8)
            return builder.zext(value, _I64) if bits < 64 else value

        return i64(i64), generate

    return load


def _store(bits: int, order: str | None) -> Any:
    @intrinsic
    def store(typing_context, addr, value):
        def generate(context, builder, signature, args):
            pointer = builder.inttoptr(args[0], ir.IntType(bits).as_pointer())
            value = builder.trunc(args[1], ir.IntType(bits)) if bits < 64 else args[1]
            if order is None:
                builder.store(value, pointer, align=1)
            else:
                builder.store_atomic(value, pointer, order, bits // 8)
            return context.get_dummy_value()

        return void(i64, i64), generate

    return store


def _compare_and_swap(bits: int) -> Any:
    @intrinsic
    def cas(typing_context, addr, expected, desired):
        def generate(context, builder, signature, args):
            width = ir.IntType(bits)
            pointer = builder.inttoptr(args[0], width.as_pointer())
            old, new = (builder.trunc(a, width) if bits < 64 else a for a in args[1:])
            result = builder.cmpxchg(pointer, old, new, "seq_cst", "seq_cst")
            value = builder.extract_value(result, 0)
            return builder.zext(value, _I64) if bits < 64 else value

        return i64(i64, i64, i64), generate

    return cas


load8, load16, load32, load64 = (_load(bits, None) for bits in (8, 16, 32, 64))
load8_once, load16_once, load32_once, load64_once = (_load(bits, "monotonic") for bits in (8, 16, 32, 64))
load32_acquire, load64_acquire = (_load(bits, "acquire") for bits in (32, 64))
store8, store16, store32, store64 = (_store(bits, None) for bits in (8, 16, 32, 64))
store16_once, store32_once, store64_once = (_store(bits, "monotonic") for bits in (16, 32, 64))
store16_release, store32_release, store64_release = (_store(bits, "release") for bits in (16, 32, 64))
# Return the value found; the swap took place if it equals `expected`.
cas16, cas64 = _compare_and_swap(16), _compare_and_swap(64)


@intrinsic
def full_fence(typing_context):
    """Full barrier: no load after it is satisfied before a store in front of it is visible."""

    def generate(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return void(), generate


@intrinsic
def release_fence(typing_context):
    """No store after it is visible before a load or store in front of it. On x86 it keeps the compiler in order, no more."""

    def generate(context, builder, signature, args):
        builder.fence("release")
        return context.get_dummy_value()

    return void(), generate


@intrinsic
def cpu_relax(typing_context):
    """Hint of a spinning loop (PAUSE on x86, YIELD on Arm)."""

    def generate(context, builder, signature, args):
        if platform.machine() == "x86_64":
            builder.call(_libc(builder, "llvm.x86.sse2.pause", ir.VoidType(), []), [])
        elif platform.machine() == "aarch64":
            builder.call(_libc(builder, "llvm.aarch64.hint", ir.VoidType(), [_I32]), [_I32(1)])
        return context.get_dummy_value()

    return void(), generate


@intrinsic
def memcpy(typing_context, destination, source, length):
    """Copy `length` bytes between addresses that do not overlap."""

    def generate(context, builder, signature, args):
        function = builder.module.declare_intrinsic("llvm.memcpy", [_PTR, _PTR, _I64])
        destination, source = builder.inttoptr(args[0], _PTR), builder.inttoptr(args[1], _PTR)
        builder.call(function, [destination, source, args[2], _I1(0)])
        return context.get_dummy_value()

    return void(i64, i64, i64), generate


@intrinsic
def copy32(typing_context, destination, source):
    """Copy 32 bytes, any alignment, in registers: a call of memcpy costs more than so small a copy."""

    def generate(context, builder, signature, args):
        wide = ir.VectorType(_I64, 4).as_pointer()
        destination, source = (builder.inttoptr(arg, wide) for arg in args)
        builder.store(builder.load(source, align=1), destination, align=1)
        return context.get_dummy_value()

    return void(i64, i64), generate


def _prefetch(write: int) -> Any:
    @intrinsic
    def hint(typing_context, addr):
        def generate(context, builder, signature, args):
            signature = ir.FunctionType(ir.VoidType(), [_PTR, _I32, _I32, _I32])
            function = builder.module.declare_intrinsic("llvm.prefetch", [_PTR], signature)
            builder.call(function, [builder.inttoptr(args[0], _PTR), _I32(write), _I32(3), _I32(1)])
            return context.get_dummy_value()

        return void(i64), generate

    return hint


prefetch, prefetch_for_write = (_prefetch(write) for write in (0, 1))
"""Hints that the cache line at an address will be read, or written, soon. A batch of lines then comes from the other side's cache
in parallel; loads, and stores, which retire in order, would fetch one after the other. Any address will do, it cannot fault."""


@compiled
def prefetch_frame(addr: int, length: int) -> None:
    """`prefetch` for every line of a frame: worth it for one alone, whose end the processor does not foresee."""
    for offset in range(0, length, CACHE_LINE):
        prefetch(addr + offset)


@compiled
def prefetch_frame_for_write(addr: int, length: int) -> None:
    """`prefetch_for_write` for every line of a frame."""
    for offset in range(0, length, CACHE_LINE):
        prefetch_for_write(addr + offset)


@intrinsic
def memzero(typing_context, destination, length):
    """Set `length` bytes to zero."""

    def generate(context, builder, signature, args):
        function = builder.module.declare_intrinsic("llvm.memset", [_PTR, _I64])
        builder.call(function, [builder.inttoptr(args[0], _PTR), _I8(0), args[1], _I1(0)])
        return context.get_dummy_value()

    return void(i64, i64), generate


@intrinsic
def leading_zeros(typing_context, value):
    """Number of zero bits above the highest bit of a word that is set; 64 for zero."""

    def generate(context, builder, signature, args):
        return builder.ctlz(args[0], _I1(0))

    return i64(i64), generate


@compiled
def u32_add(a: int, b: int) -> int:
    """a + b of a free-running 32-bit index."""
    return (a + b) & 0xFFFFFFFF


@compiled
def u32_sub(a: int, b: int) -> int:
    """a − b of free-running 32-bit indices: the distance from b forward to a."""
    return (a - b) & 0xFFFFFFFF


def record_view(dtype: Any) -> Any:
    """An intrinsic that views an address as a record of `dtype` (private state only: accesses are plain)."""
    record = numba.from_dtype(dtype)

    @intrinsic
    def view(typing_context, addr):
        def generate(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return record(i64), generate

    return view


@intrinsic
def call_operation(typing_context, function, state, count):
    """Call the C function at an address: ``int64 function(int64 state, int64 count)``."""

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.FunctionType(_I64, [_I64, _I64]).as_pointer())
        return builder.call(pointer, args[1:])

    return i64(i64, i64, i64), generate


# --- system calls ----------------------------------------------------------------------------------------------------

sys_read: Any = types.ExternalFunction("read", i64(types.int32, i64, i64))
sys_write: Any = types.ExternalFunction("write", i64(types.int32, i64, i64))
sys_readv: Any = types.ExternalFunction("readv", i64(types.int32, i64, types.int32))
sys_writev: Any = types.ExternalFunction("writev", i64(types.int32, i64, types.int32))
sys_sendmmsg: Any = types.ExternalFunction("sendmmsg", types.int32(types.int32, i64, types.int32, types.int32))
sys_recvmmsg: Any = types.ExternalFunction("recvmmsg", types.int32(types.int32, i64, types.int32, types.int32, i64))
# Address of the calling thread's errno; meaningful only directly after a call that failed.
sys_errno_location: Any = types.ExternalFunction("__errno_location", i64())
sys_getppid: Any = types.ExternalFunction("getppid", types.int32())
sys_sched_yield: Any = types.ExternalFunction("sched_yield", types.int32())
# syscall(2) with six arguments: variadic in C, which makes no difference to integers on the architectures that Linux has them on.
sys_syscall: Any = types.ExternalFunction("syscall", i64(i64, i64, i64, i64, i64, i64, i64))


def _libc(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def _clock(number: int) -> Any:
    """Code that reads a clock of the kernel's, in nanoseconds."""

    def generate(context, builder, signature, args):
        spec = cgutils.alloca_once(builder, ir.ArrayType(_I64, 2))
        clock_gettime = _libc(builder, "clock_gettime", _I32, [_I32, _PTR])
        builder.call(clock_gettime, [_I32(number), builder.bitcast(spec, _PTR)])
        seconds, nanoseconds = (builder.load(cgutils.gep_inbounds(builder, spec, 0, k)) for k in (0, 1))
        return builder.add(builder.mul(seconds, _I64(1_000_000_000)), nanoseconds)

    return generate


@intrinsic
def clock_ns(typing_context):
    """CLOCK_MONOTONIC in nanoseconds."""
    return i64(), _clock(time.CLOCK_MONOTONIC)


@intrinsic
def thread_cpu_ns(typing_context):
    """CLOCK_THREAD_CPUTIME_ID in nanoseconds: CPU time of the thread. A system call, half a microsecond."""
    return i64(), _clock(time.CLOCK_THREAD_CPUTIME_ID)


@intrinsic
def notify(typing_context, eventfd):
    """Signal an eventfd: one write(2). The result is write's."""

    def generate(context, builder, signature, args):
        one = cgutils.alloca_once_value(builder, _I64(1))
        write = _libc(builder, "write", _I64, [_I32, _PTR, _I64])
        return builder.call(write, [builder.trunc(args[0], _I32), builder.bitcast(one, _PTR), _I64(8)])

    return i64(i64), generate


MOST_EVENTS = 16
EVENT_BYTES = 12 if platform.machine() == "x86_64" else 16  # struct epoll_event
EVENT_DATA = EVENT_BYTES - 8


@intrinsic
def epoll_sleep(typing_context, epoll, timeout_ns, into):
    """Sleep in epoll_pwait2(2) until an event or for `timeout_ns` (negative: no limit). Number of events, or −1.

    The events are hints (edge-triggered, never read): the rings tell what happened. Up to MOST_EVENTS are taken at a time; what is
    left over wakes the next call. `into`: address of room for them, or 0.
    """

    def generate(context, builder, signature, args):
        own = cgutils.alloca_once(builder, ir.ArrayType(_I64, 2 * MOST_EVENTS))
        nowhere = builder.icmp_signed("==", args[2], _I64(0))
        events = builder.select(nowhere, builder.bitcast(own, _PTR), builder.inttoptr(args[2], _PTR))
        spec = cgutils.alloca_once(builder, ir.ArrayType(_I64, 2))
        billion = _I64(1_000_000_000)
        builder.store(builder.sdiv(args[1], billion), cgutils.gep_inbounds(builder, spec, 0, 0))
        builder.store(builder.srem(args[1], billion), cgutils.gep_inbounds(builder, spec, 0, 1))
        forever = builder.icmp_signed("<", args[1], _I64(0))
        limit = builder.select(forever, ir.Constant(_PTR, None), builder.bitcast(spec, _PTR))
        wait = _libc(builder, "epoll_pwait2", _I32, [_I32, _PTR, _I32, _PTR, _PTR])
        call = [builder.trunc(args[0], _I32), events, _I32(MOST_EVENTS), limit, ir.Constant(_PTR, None)]
        return builder.sext(builder.call(wait, call), _I64)

    return i64(i64, i64, i64), generate
