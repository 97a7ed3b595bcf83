"""The read-only registers: thread and block numbers, lane masks, clocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .errors import UnsupportedError
from .isa import Array

if TYPE_CHECKING:
    from .machine import Machine


def special_register(machine: Machine, name: str) -> Array:
    """Its value for every lane, or one value if all have the same."""
    value = np.asarray(_value(machine, name), np.int64)
    if value.ndim == 0 or (value == value.flat[0]).all():
        return np.array([value.flat[0]], np.int64)
    return value


def _value(machine: Machine, name: str) -> Array | int:
    launch = machine.launch
    lane = np.arange(machine.lane_count)
    thread = lane % machine.lanes_per_block
    stem, _, axis_name = name[1:].partition(".")
    if axis_name:
        axis = "xyz".index(axis_name)
        return _vector(machine, stem, axis, thread)
    bit = np.int64(1) << (lane % 32)
    simple: dict[str, Array | int] = {
        "laneid": lane % 32,
        "warpid": thread // 32,
        "nwarpid": machine.lanes_per_block // 32,
        "smid": 0,
        "nsmid": 132,
        "gridid": 0,
        "clock": machine.scheduler.steps,
        "clock64": machine.scheduler.steps,
        "globaltimer": machine.scheduler.steps,
        "lanemask_eq": bit,
        "lanemask_lt": bit - 1,
        "lanemask_le": bit * 2 - 1,
        "lanemask_gt": ~(bit * 2 - 1),
        "lanemask_ge": ~(bit - 1),
        "cluster_ctarank": machine.ranks,
        "cluster_nctarank": machine.cluster_size,
        "is_explicit_cluster": int(machine.cluster_size > 1),
        "dynamic_smem_size": launch.dynamic_shared,
        "total_smem_size": launch.shared_bytes,
    }
    if stem not in simple:
        raise UnsupportedError(f"special register {name}")
    return simple[stem]


def _coordinate(number: Array, shape: tuple[int, int, int], axis: int) -> Array:
    below = int(np.prod(shape[:axis]))
    return number // below % shape[axis]


def _vector(machine: Machine, stem: str, axis: int, thread: Array) -> Array | int:
    launch = machine.launch
    grid, cluster = launch.grid, launch.cluster
    if stem in ("ntid", "nctaid", "cluster_nctaid"):
        return {"ntid": launch.block, "nctaid": grid, "cluster_nctaid": cluster}[stem][axis]
    if stem == "nclusterid":
        return grid[axis] // cluster[axis]
    if stem == "tid":
        return _coordinate(thread, launch.block, axis)
    block = _coordinate(machine.blocks, grid, axis)[machine.lane_blocks]
    if stem == "ctaid":
        return block
    if stem == "cluster_ctaid":
        return block % cluster[axis]
    if stem == "clusterid":
        return block // cluster[axis]
    raise UnsupportedError(f"special register %{stem}")
