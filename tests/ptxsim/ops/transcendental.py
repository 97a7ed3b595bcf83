"""The approximations of the special-function unit, from float64 and optionally off by some ulp."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ..body import Instruction
from ..floats import flushed, nudged
from ..frame import Frame
from ..isa import Array
from ..registry import op
from ..values import Access, Step
from .common import Function, float_op, narrowed, on_pairs, widened


def approximate(
    i: Instruction, access: Access, fn: Function, exact: Callable[[Array], Array] | None = None
) -> Step:
    """fn evaluated in float64; float32 results get the launch's noise, but where it is `exact`."""
    element = i.type.element or i.type
    reads, write, ftz = access.sources(i), access.result(i), i.has("ftz")

    def value(*x: Array) -> Array:
        return narrowed(fn(*[widened(v, element) for v in x]), element)

    if i.type.element:
        value = on_pairs(value, element, i.type.dtype)
    noisy = i.type.name == "f32"

    def step(f: Frame) -> None:
        inputs = [read(f) for read in reads]
        if ftz and noisy:
            inputs = [flushed(x) for x in inputs]
        result = value(*inputs)
        launch = f.machine.launch
        if noisy and launch.noise:
            noisy_result = nudged(result, launch.noise, launch.seed)
            result = np.where(exact(inputs[0]), result, noisy_result) if exact else noisy_result
        if ftz and noisy:
            result = flushed(result)
        write(f, result)

    return step


@op("ex2")
def ex2(i: Instruction, access: Access) -> Step:
    # CUDA's tanh, in double, takes it that 2^n has no error.
    return approximate(i, access, np.exp2, exact=lambda x: x == np.rint(x))


for _name, _fn in {"lg2": np.log2, "tanh": np.tanh, "sin": np.sin, "cos": np.cos}.items():
    op(_name)(partial(approximate, fn=_fn))


def _coarse(i: Instruction, access: Access, fn: Function) -> Step:
    """rcp and rsqrt .approx.ftz.f64 give only the upper 32 bits; the rest is zero."""
    read, write = access.sources(i)[0], access.result(i)

    def step(f: Frame) -> None:
        bits = np.asarray(fn(read(f))).view(np.uint64)
        write(f, bits & np.uint64(0xFFFFFFFF00000000))

    return step


@op("rcp")
def rcp(i: Instruction, access: Access) -> Step:
    if i.has("approx"):
        coarse = i.type.bits == 64
        return (_coarse if coarse else approximate)(i, access, np.reciprocal)
    return float_op(i, access, np.reciprocal, np.reciprocal)


@op("sqrt")
def sqrt(i: Instruction, access: Access) -> Step:
    if i.has("approx"):
        return approximate(i, access, np.sqrt)
    return float_op(i, access, np.sqrt, np.sqrt)


@op("rsqrt")
def rsqrt(i: Instruction, access: Access) -> Step:
    def inverse_root(x: Array) -> Array:
        return np.reciprocal(np.sqrt(x))

    return (_coarse if i.type.bits == 64 else approximate)(i, access, inverse_root)
