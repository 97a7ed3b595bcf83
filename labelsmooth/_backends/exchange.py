"""The one collective of a call over ranks: the parts of rows, and whether all mean the same call.

What a rank sends begins with a header. If headers differ, or one of them tells of an error, all
raise: no rank waits for another that has left. For that a message has the same size on all ranks
whatever they were called with: the largest of late, a history that they share. Who needs more says
so, and then all send once more.
"""

import os
import zlib
from collections import deque
from functools import cached_property
from types import TracebackType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from .._call.checks import is_real
from .._call.problem import CommonOptions, Inputs, ProcessGroup, class_range
from .._call.schema import keywords_of
from .parts import invalid_rows
from .ranks import gathered, group_named, place_in

# ---- what all ranks must agree on ----------------------------------------------------------------

LOCAL = ("process_group", "class_offset", "backend", "inplace")  # each rank has its own
SUMMED_UP = ("target", "target_probs", "row_weight", "normalizer")  # come with each call


class RanksDifferError(ValueError):
    pass


class Header(NamedTuple):
    """Of a call: what is the same on all ranks, then what is not."""

    shared: dict[str, int]
    own: tuple[int, int]  # classes from, to
    checksums: list[Tensor | None]  # of what SUMMED_UP names, () each
    options: CommonOptions


def _header_of(inputs: Inputs, options: CommonOptions, more: dict[str, int]) -> Header:
    """Of all rows of a call, and what more its ranks must agree on."""
    logits = inputs.logits
    classes = class_range(logits.shape[1], options)
    begin = min(classes.first, classes.all)
    shared = {
        "rows": logits.shape[0] * logits.shape[2:].numel(),
        "dtype of the logits": _hashed(logits.dtype),
        "kind of the target": (inputs.target_probs is not None)
        + 2 * inputs.target.is_floating_point(),
    }
    for name in ("weight", "prior"):
        shared[name] = int(getattr(inputs, name) is not None)
    for name in keywords_of(type(options), without=LOCAL):
        shared[name] = _hashed(getattr(options, name))
    shared |= more
    checksums = [_checksum(getattr(inputs, name)) for name in SUMMED_UP]
    if inputs.target.is_floating_point():  # of this rank's classes
        checksums[0] = None
    return Header(shared, (begin, begin + classes.count), checksums, options)


def _hashed(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return zlib.crc32(repr(value).encode())


def _checksum(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    bits = tensor.detach().flatten()
    if bits.dtype != torch.int64:
        bits = bits.double().view(torch.int64)
    odd = 2 * torch.arange(bits.numel(), device=bits.device) + 1
    return (bits * odd).sum()


def _words(values: list[int], device: torch.device) -> Tensor:
    """Padded with 0; a GPU gets them without a wait."""
    words = torch.tensor(values + [0] * (WORDS - len(values)), dtype=torch.int64, device="cpu")
    return words if device.type == "cpu" else words.pin_memory().to(device, non_blocking=True)


# ---- the exchange --------------------------------------------------------------------------------

WORDS = 32
HEADER_BYTES = 8 * WORDS
ROOM = 8192  # sizes of messages are multiples of this
RECENT = 64  # exchanges, of which the largest decides
FAILED, NEEDED, BEGIN, END, CHECKSUMS = range(5)  # the words
SHARED = CHECKSUMS + len(SUMMED_UP)


class _Exchange:
    """Of a process group: what has gone on between its ranks."""

    def __init__(self) -> None:
        self.count = 0
        self._sizes = deque([ROOM], maxlen=RECENT)

    @property
    def size(self) -> int:
        return max(self._sizes)

    def needs(self, size: int) -> None:
        """What a message of a call that all agree on needs."""
        self._sizes.append(-(-size // ROOM) * ROOM)

    def run(self, group: Any, head: Tensor, payload: Tensor | None = None) -> Tensor:
        """(ranks, size), of a message that is no longer than that."""
        sent = torch.zeros(self.size, dtype=torch.uint8, device=head.device)
        sent[:HEADER_BYTES] = head.view(torch.uint8)
        if payload is not None:
            sent[HEADER_BYTES : HEADER_BYTES + len(payload)] = payload
        self.count += 1
        return gathered(sent, group.group_name, dist.get_world_size(group))


_exchanges: WeakKeyDictionary[Any, _Exchange] = WeakKeyDictionary()


def _exchange_of(group: Any) -> _Exchange:
    return _exchanges.setdefault(group, _Exchange())


class Gather:
    """All ranks' parts of rows, (ranks, fields, N), of this rank's, (fields, N).

    The ranks must agree on inputs, options and more. If not, all raise: on the CPU, and with
    LABELSMOOTH_CHECK=1 everywhere; else a GPU asserts it, without a wait. In a graph that is traced
    or captured nobody looks.
    """

    def __init__(self, inputs: Inputs, options: CommonOptions, **more: int) -> None:
        self._call, self._group = (inputs, options, more), str(options.process_group)

    @cached_property
    def header(self) -> Header:
        return _header_of(*self._call)

    def __call__(self, part: Tensor, *, with_targets: bool = True) -> Tensor:
        """with_targets: a part says where a target is no class."""
        if is_real(part) and not (part.is_cuda and torch.cuda.is_current_stream_capturing()):
            return _all_gather(part, self.header, self._group, with_targets)
        return gathered(part.contiguous(), self._group, place_in(self._group).ranks)


def _all_gather(part: Tensor, header: Header, name: str, with_targets: bool) -> Tensor:
    group = group_named(name)
    exchange = _exchange_of(group)
    payload = part.contiguous().view(-1).view(torch.uint8)
    needed = HEADER_BYTES + len(payload)
    words = [0, needed, *header.own, *[0] * len(SUMMED_UP), *header.shared.values()]
    head = _words(words, part.device)
    for place, checksum in enumerate(header.checksums, start=CHECKSUMS):
        if checksum is not None:
            head[place] = checksum
    if needed > exchange.size:
        _check(exchange.run(group, head), header, read=True)
        exchange.needs(needed)
    received = exchange.run(group, head, payload)
    read = part.is_cpu or os.environ.get("LABELSMOOTH_CHECK") == "1"
    _check(received, header, read=read)
    parts = received[:, HEADER_BYTES:needed].view(part.dtype).view(len(received), *part.shape)
    exchange.needs(needed)
    if read and with_targets:
        _check_targets(parts, header.options)
    return parts


def _check(received: Tensor, header: Header, *, read: bool) -> None:
    heads = received[:, :HEADER_BYTES].view(torch.int64)
    if not read:
        same = (heads[:, CHECKSUMS:] == heads[0, CHECKSUMS:]).all()
        same &= (heads[:, NEEDED] == heads[0, NEEDED]).all()
        adjacent = (heads[1:, BEGIN] == heads[:-1, END]).all()
        adjacent &= (heads[0, BEGIN] == 0) & (heads[-1, END] == header.options.num_classes)
        torch._assert_async(
            same & adjacent & (heads[:, FAILED] == 0).all(),
            "the ranks of the process group were called with different arguments, or one of them "
            "has met an error; LABELSMOOTH_CHECK=1 tells which",
        )
        return
    ranks = heads.tolist()
    failed = [rank for rank, words in enumerate(ranks) if words[FAILED]]
    if failed:
        raise RuntimeError(
            f"the call failed on {_named(failed)} of the process group, which raised the error"
        )
    places = dict(zip(header.shared, range(SHARED, WORDS), strict=False))
    places |= dict(zip(SUMMED_UP, range(CHECKSUMS, SHARED), strict=True))
    places["rows of a chunk"] = NEEDED
    for name, place in places.items():
        came = [words[place] for words in ranks]
        other = [rank for rank, value in enumerate(came) if value != came[0]]
        if other:
            shown = f": {came[0]} on rank 0, {came[other[0]]}" if name == "rows" else ", but not"
            raise RanksDifferError(
                f"{name}: expected the same on all ranks of the process group{shown} on "
                f"{_named(other)}"
            )
    ranges = [(words[BEGIN], words[END]) for words in ranks]
    ends = [0, *(end for _, end in ranges)]
    expected = int(header.options.num_classes or 0)
    if [begin for begin, _ in ranges] != ends[:-1] or ends[-1] != expected:
        raise ValueError(
            f"class_offset, num_classes: expected ranks with adjacent classes from 0 to {expected},"
            f" got {ranges}"
        )


def _check_targets(parts: Tensor, options: CommonOptions) -> None:
    invalid = invalid_rows(parts)
    if bool(invalid.any()):
        rank, row = invalid.nonzero()[0].tolist()
        raise IndexError(
            f"target of row {row} on rank {rank}: expected a class in [0, {options.num_classes}) "
            f"or ignore_index = {options.ignore_index}"
        )


def _named(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


class together:  # noqa: N801, reads as a word of the language
    """An error within, before any exchange, is told to the other ranks, which raise too."""

    def __init__(self, group: Any, logits: Any) -> None:
        self._group: Any = None
        self._logits = logits
        if group is None or torch.compiler.is_compiling():
            return
        if not isinstance(group, ProcessGroup | str):
            return
        group = group_named(group) if isinstance(group, str) else group
        if dist.get_rank(group) >= 0 and dist.get_world_size(group) > 1:
            self._group = group

    def __enter__(self) -> None:
        if self._group is not None:
            self._count = _exchange_of(self._group).count

    def __exit__(
        self, kind: type | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._group is None or not isinstance(error, Exception):
            return
        exchange = _exchange_of(self._group)
        if exchange.count == self._count:
            exchange.run(self._group, _words([1], self._device()))

    def _device(self) -> torch.device:
        """Where the others' logits most likely are, and the group has a backend."""
        kinds = [device.type for device in self._group._device_types]
        if isinstance(self._logits, Tensor) and self._logits.device.type in kinds:
            return self._logits.device
        return torch.device("cuda" if "cuda" in kinds and torch.cuda.is_available() else "cpu")
