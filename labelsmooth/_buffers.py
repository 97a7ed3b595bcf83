"""Buffers that stay float32 in a model that is cast to 16 bits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def _is_narrow(tensor: Tensor | None) -> bool:
    return isinstance(tensor, Tensor) and tensor.dtype in (torch.float16, torch.bfloat16)


class Float32Buffers(nn.Module):
    """A module whose floating-point buffers are of float32 or better, whatever they are given in.

    `.half()`, `.bfloat16()` and `.to(dtype)` come through `_apply`. FullyShardedDataParallel's
    `buffer_dtype` sets `buffer.data`: a second tensor on the same memory keeps what it was.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}  # each buffer and its second

    def in_float32(self, name: str) -> Any:
        """The buffer, or where its data have been narrowed, what they were."""
        buffer = getattr(self, name)
        if not _is_narrow(buffer) or name not in self._kept:
            return buffer
        known, kept = self._kept[name]
        if buffer is not known:  # but of torch.func.functional_call
            return buffer
        kept = kept.to(buffer.device)
        # Values written since then, which are no rounding of the old ones, count.
        return kept.where(kept.to(buffer.dtype) == buffer, buffer.to(kept.dtype))

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Assignment comes here too."""
        if tensor is not None and _is_narrow(tensor) and not tensor.requires_grad:
            tensor = tensor.float()
        super().register_buffer(name, tensor, persistent)
        self._keep(name)

    def _keep(self, name: str) -> None:
        buffer = self._buffers[name]
        if buffer is None or buffer.requires_grad:
            self._kept.pop(name, None)
        else:
            self._kept[name] = buffer, buffer.detach()

    def _widen(self) -> None:
        for name in self._buffers:
            self._buffers[name] = self.in_float32(name)
            self._keep(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._widen()
        wide = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in wide.items():
            made = self._buffers[name]
            if made is not None and buffer is not None and _is_narrow(made):
                self._buffers[name] = buffer.to(made.device)
            self._keep(name)
        return self

    def _save_to_state_dict(self, *arguments: Any) -> None:
        self._widen()
        super()._save_to_state_dict(*arguments)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._widen()
        super()._load_from_state_dict(*arguments)

    def __getstate__(self) -> dict[str, Any]:
        self._widen()
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._kept = {}
        self._widen()
