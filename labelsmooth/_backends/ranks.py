"""The ranks of a process group: which classes each has, and what they send each other."""

from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .._call.problem import CommonOptions

AnyOptions = TypeVar("AnyOptions", bound=CommonOptions)


class Place(NamedTuple):
    """Of this process among the ranks."""

    group: str
    rank: int
    ranks: int


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def place_in(name: Any) -> Place:
    group = group_named(name)
    return Place(name, dist.get_rank(group), dist.get_world_size(group))


def group_named(name: Any) -> Any:
    try:
        return torch._C._distributed_c10d._resolve_process_group(name)
    except RuntimeError:
        raise ValueError(
            "process_group: expected a torch.distributed.ProcessGroup that exists, or its name, "
            f"got {name!r}"
        ) from None


def resolved(options: AnyOptions, columns: int) -> AnyOptions:
    """With the classes that these columns are, and without a group where a rank is alone in it.

    Raises ValueError where this rank has no such classes, or is not in the group.
    """
    group, first, total = None, options.class_offset, options.num_classes
    if options.process_group is not None:
        place = place_in(options.process_group)
        if place.rank < 0:
            raise ValueError("process_group: expected a group that this process is in")
        if place.ranks > 1:
            group = place.group
            total = place.ranks * columns if total is None else total
            if first is None:  # equal parts, padded or not, or those of torch.chunk
                if columns >= total > 1:
                    raise ValueError(
                        f"logits: expected those of this rank's classes, got {columns} columns for "
                        f"num_classes={total}; class_offset says so if that is meant"
                    )
                first = _first_class(place, total, columns)
    if group is None and total is not None and (total > columns or first not in (None, 0)):
        came = f"num_classes={total}" + (f", class_offset={first}" if first else "")
        raise ValueError(
            f"num_classes: expected at most {columns}, the number of columns, where no other rank "
            f"has any, got {came}"
        )
    if (group, first, total) == (
        options.process_group,
        options.class_offset,
        options.num_classes,
    ):
        return options
    return replace(options, process_group=group, class_offset=first, num_classes=total)


def share_of(options: CommonOptions) -> tuple[int, int]:
    """Where the classes of this rank begin and how many they are, of num_classes in equal parts,
    the last of which are smaller or empty: as DTensor has them."""
    place, total = place_in(options.process_group), int(options.num_classes or 0)
    first = options.class_offset
    first = _first_class(place, total) if first is None else first
    return first, max(0, min(_share(place, total), total - first))


def _share(place: Place, total: int) -> int:
    """The most classes that a rank has, where all have the same or the last ones fewer."""
    return -(-total // place.ranks)


def _first_class(place: Place, total: int, columns: int = 0) -> int:
    """Of that rank; with more columns than its share, all ranks have some padding."""
    return min(place.rank * max(columns, _share(place, total)), total)


def with_share(options: AnyOptions, group: str, classes: int) -> tuple[AnyOptions, int]:
    """The options of a rank that has its share of so many classes, and how many columns it has;
    from num_classes on, if given, these are padding."""
    shared = replace(options, process_group=group, num_classes=classes)
    first, count = share_of(shared)
    total = classes if options.num_classes is None else options.num_classes
    return replace(shared, class_offset=first, num_classes=total), count


# ---- collectives, in the form that graphs have them ----------------------------------------------


def gathered(tensor: Tensor, group: str, ranks: int) -> Tensor:
    """Those of all ranks, (ranks, ...)."""
    collectives = torch.ops._c10d_functional
    pending = collectives.all_gather_into_tensor.default(tensor, ranks, group)
    received: Tensor = collectives.wait_tensor.default(pending)
    return received.view(ranks, *tensor.shape)


def summed(tensor: Tensor, group: str) -> Tensor:
    """The sum of all ranks'."""
    collectives = torch.ops._c10d_functional
    pending = collectives.all_reduce.default(tensor, "sum", group)
    received: Tensor = collectives.wait_tensor.default(pending)
    return received
