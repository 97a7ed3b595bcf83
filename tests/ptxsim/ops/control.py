"""Branches, exits, and instructions that do nothing here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..body import Instruction
from ..errors import SimError
from ..frame import Frame
from ..isa import TYPES
from ..lanes import lanes_of
from ..registry import op, unsupported
from ..values import Access, Read, Step

Finish = Callable[[Frame], None]


def fall_through(target: int, end: int) -> Finish:
    if target >= end:
        return lambda f: f.machine.exit(f)
    return lambda f: f.machine.go(target, f.lanes)


def branch(i: Instruction, access: Access) -> Finish:
    """How the last instruction of a block sends its lanes on."""
    if i.opcode == "brx":
        return _indexed(i, access)
    after = i.pc + 1
    if i.opcode == "bra":
        target = i.targets[0]
        taken: Finish = lambda f: f.machine.go(target, f.lanes)  # noqa: E731
    else:
        taken = lambda f: f.machine.exit(f)  # noqa: E731
    if i.guard is None:
        return taken
    return _conditional(access.read(i.guard, i.guard.type), taken, after)


def _conditional(guard: Read, taken: Finish, after: int) -> Finish:
    def finish(f: Frame) -> None:
        condition = guard(f)
        if condition.all():
            taken(f)
        elif not condition.any():
            f.machine.go(after, f.lanes)
        else:
            index = f.index
            f.machine.go(after, lanes_of(index[~condition]))
            chosen = condition.nonzero()[0]
            taken(f.subset(chosen, ()))

    return finish


def _indexed(i: Instruction, access: Access) -> Finish:
    read, targets = access.read(i.operands[0], TYPES["u32"]), i.targets
    if i.guard is not None:
        raise unsupported(i)

    def finish(f: Frame) -> None:
        choice = f.spread(read(f))
        for number in np.unique(choice):
            if number >= len(targets):
                raise f.machine.fail(i, "branch index past its table", f.index[choice == number])
            f.machine.go(targets[int(number)], lanes_of(f.index[choice == number]))

    return finish


@op(
    "membar",
    "fence",
    "griddepcontrol",
    "nanosleep",
    "prefetch",
    "prefetchu",
    "discard",
    "applypriority",
    "pmevent",
    "setmaxnreg",
)
def nothing(i: Instruction, access: Access) -> Step:
    """Memory is sequentially consistent here, and there are no caches."""
    return lambda f: None


@op("createpolicy")
def createpolicy(i: Instruction, access: Access) -> Step:
    write = access.result(i, TYPES["b64"])
    return lambda f: write(f, np.zeros(1, np.uint64))


@op("trap", "brkpt")
def trap(i: Instruction, access: Access) -> Step:
    def step(f: Frame) -> None:
        raise f.machine.fail(i, "trap", f.index)

    return step


@op("call")
def call(i: Instruction, access: Access) -> Step:
    """Only printf (ignored) and a failed assertion; other functions must be inlined."""
    if "vprintf" in i.text:
        return lambda f: None

    def step(f: Frame) -> None:
        if "__assertfail" in i.text:
            raise f.machine.fail(i, "assertion failed on the device", f.index)
        raise SimError(f"call of a device function (inline it): `{i.text}`")

    return step
