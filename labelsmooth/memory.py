"""The memory that is kept between calls."""

from . import _C

__all__ = ["release_memory"]


def release_memory() -> None:
    """Gives the memory that is kept for large gradients on the CPU back to the system.

    The system clears each page of new memory, which takes longer than loss and gradient together.
    So a fresh gradient of 32 MiB or more (and the statistics of millions of rows, 16 or 24 bytes
    each; of the fused projection, the slab of logits and the sums of the weight's gradient) leaves
    its memory, when nobody holds it any more, to the next such tensor: b bytes serve a request of
    3/4 b to b. What is kept:

    - at most 3 blocks, the last ones that were given back, each as large as its tensor;
    - none that 16 requests in turn had no use for: after one call with a far larger batch its
      memory stays for the next 16 such tensors, or until this function is called;
    - on Linux with torch 2.11 or newer; elsewhere nothing, and this function does nothing.

    Kept memory is marked as free to take (``MADV_FREE``): where the machine or the control group
    runs short the system takes it. Until then it counts to the process's resident memory
    (``LazyFree`` in ``/proc/self/smaps_rollup`` tells how much).

    What somebody still holds is not touched. Any thread may call it, at any time.

    The storage of such a gradient cannot be resized: ``grad.untyped_storage().resize_(0)`` is a
    RuntimeError. ``grad.set_()`` gives its memory back; ``grad.clone()`` has a storage that can be
    resized.
    """
    _C.release_memory()
