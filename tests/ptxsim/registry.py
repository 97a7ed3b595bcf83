"""Which function compiles which instruction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .body import Instruction
from .errors import UnsupportedError
from .frame import Frame
from .values import Access, Step


class Sync(Protocol):
    """An instruction at which lanes may have to wait for others."""

    warp_level: bool

    def ready(self, frame: Frame) -> Frame | None:
        """The lanes that may execute it now; the others are parked."""
        ...


Builder = Callable[[Instruction, Access], Step]
SyncBuilder = Callable[[Instruction, Access], "Sync | None"]

_builders: dict[str, Builder] = {}
_syncs: dict[str, SyncBuilder] = {}


def op(*names: str) -> Callable[[Builder], Builder]:
    """The function compiles these opcodes to a step."""

    def register(builder: Builder) -> Builder:
        _builders.update(dict.fromkeys(names, builder))
        return builder

    return register


def sync(*names: str) -> Callable[[SyncBuilder], SyncBuilder]:
    """The function says whether and how these opcodes wait."""

    def register(builder: SyncBuilder) -> SyncBuilder:
        _syncs.update(dict.fromkeys(names, builder))
        return builder

    return register


def build_step(instruction: Instruction, access: Access) -> Step:
    builder = _builders.get(instruction.opcode)
    if builder is None:
        raise UnsupportedError(f"instruction not supported: `{instruction.text}`")
    return builder(instruction, access)


def build_sync(instruction: Instruction, access: Access) -> Sync | None:
    builder = _syncs.get(instruction.opcode)
    return builder(instruction, access) if builder else None


def unsupported(instruction: Instruction) -> UnsupportedError:
    return UnsupportedError(f"form not supported: `{instruction.text}`")
