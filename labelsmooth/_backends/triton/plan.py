"""How the logits are divided among programs and threads."""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

# Tiles of a row under way at a time, where only logits are read: one is summed up while the next
# comes, through shared memory. 1: none comes ahead.
STAGES = 2


class Gpu(NamedTuple):
    processors: int
    warp: int  # threads


class Tile(NamedTuple):
    """What the threads of a program hold in registers at a time: `rows` x `block` logits."""

    rows: int
    block: int
    threads: int


class Plan(NamedTuple):
    tile: Tile
    whole: bool  # the tile holds all classes: they are read once
    parts: int  # into how many programs the classes of a row are divided


def tile_of(rows: int, classes: int, most: int, dtype: torch.dtype, a_thread: int = 32) -> Tile:
    """All classes, in at most `most` logits, `a_thread` of them a thread. More rows where there are
    few classes. In float64 a fourth of all these numbers."""
    scale = 4 if dtype == torch.float64 else 1
    block = min(max(32, triton.next_power_of_2(classes)), most // scale // rows)
    rows = max(rows, 1024 // scale // block)
    return Tile(rows, block, min(1024 // min(scale, 2), rows * block * scale // a_thread))


def plan_of(
    outer: int,
    inner: int,
    classes: int,
    class_stride: int,
    dtype: torch.dtype,
    most: int,
    gpu: Gpu,
) -> Plan:
    """How a matrix (outer, classes, inner) is divided.

    A row of up to `most` logits (a fourth of that in float64) is held by one program and read once.
    Longer rows pass in tiles of 8192, small enough that a processor runs several programs; in
    parts, where rows are too few to fill the GPU. Of classes that lie apart, 32 adjacent rows are
    read together.
    """
    rows = 1 if class_stride == 1 else min(32, triton.next_power_of_2(max(1, inner)))
    # Where registers have room for less, so has a thread.
    tile = tile_of(rows, classes, most, dtype, a_thread=32 if most >= 32768 else 16)
    if tile.block >= classes:
        return Plan(tile, True, 1)
    tile = tile_of(rows, classes, 8192, dtype)
    programs, parts = outer * triton.cdiv(inner, rows), 1
    while programs * parts < gpu.processors and parts * tile.block < classes:
        parts *= 2
    return Plan(tile, False, parts)


def accesses_of(
    logits: Tensor, grad_logits: Tensor | None, classes: int, tile: Tile
) -> tuple[int, bool]:
    """How many classes are read and written at once, in 16 bytes; and whether a row may begin or
    end amid them."""
    width = 16 // logits.itemsize
    tensors = [logits] if grad_logits is None else [logits, grad_logits]
    if any(tensor.stride(1) != 1 for tensor in tensors) or tile.block < width:
        return 1, False
    places = [tuple(stride % width for stride in tensor.stride()) for tensor in tensors]
    if classes % width == 0 and all(sum(place) == 1 for place in places):
        return width, False
    wide = tile.rows == 1 and tile.block >= 2 * width * width  # enough lanes for the edges
    if wide and places[0] == places[-1] and all(type(tensor) is Tensor for tensor in tensors):
        # What is traced has no address yet.
        addresses = {tensor.data_ptr() % 16 for tensor in tensors}
        return (width, True) if len(addresses) == 1 else (1, False)
    return 1, False


@lru_cache
def gpu_of(device: torch.device) -> Gpu:
    if device.type != "cuda":
        return Gpu(1, 32)
    properties = torch.cuda.get_device_properties(device)
    return Gpu(properties.multi_processor_count, properties.warp_size)
