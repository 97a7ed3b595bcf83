"""How the logits are divided among programs and threads."""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton


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


def tile_of(rows: int, classes: int, most: int, dtype: torch.dtype, a_thread: int = 16) -> Tile:
    """All classes, in at most `most` logits, `a_thread` of them a thread on 128 to 512 threads.
    More rows where there are few classes. In float64 a fourth of all these numbers."""
    scale = 4 if dtype == torch.float64 else 1
    block = min(max(32, triton.next_power_of_2(classes)), most // scale // rows)
    rows = max(rows, 1024 // scale // block)
    return Tile(rows, block, min(512, max(128, rows * block * scale // a_thread)))


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
    Longer rows are passed through in tiles of 8192, small enough that a processor runs several
    programs; in parts, where rows are too few to fill the GPU. Of classes that lie apart, 32 rows,
    which then are adjacent, are read together.
    """
    rows = 1 if class_stride == 1 else min(32, triton.next_power_of_2(max(1, inner)))
    tile = tile_of(rows, classes, most, dtype)
    if tile.block >= classes:
        return Plan(tile, True, 1)
    tile = tile_of(rows, classes, 8192, dtype, a_thread=32)
    programs, parts = outer * triton.cdiv(inner, rows), 1
    while programs * parts < gpu.processors and parts * tile.block < classes:
        parts *= 2
    return Plan(tile, False, parts)


@lru_cache
def gpu_of(device: torch.device) -> Gpu:
    if device.type != "cuda":
        return Gpu(1, 32)
    properties = torch.cuda.get_device_properties(device)
    return Gpu(properties.multi_processor_count, properties.warp_size)
