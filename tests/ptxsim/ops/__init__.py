"""What each instruction does, by family. Importing this package registers all of them."""

from . import (
    arithmetic,
    async_copy,
    atomic,
    barrier,
    bits,
    compare,
    control,
    convert,
    integer,
    matrix,
    mbarrier,
    memory,
    move,
    transcendental,
    warp,
)

__all__ = [
    "arithmetic",
    "async_copy",
    "atomic",
    "barrier",
    "bits",
    "compare",
    "control",
    "convert",
    "integer",
    "matrix",
    "mbarrier",
    "memory",
    "move",
    "transcendental",
    "warp",
]
