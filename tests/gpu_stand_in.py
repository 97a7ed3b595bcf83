"""A GPU in name only, to rehearse tests that need one: `PYTEST_ADDOPTS="-p gpu_stand_in" pytest`.

Tensors lie on the CPU and say that they are on "cuda". What torch would refuse is refused: to mix
tensors of both devices, and to wait for the GPU where that is an error. Both of the GPU's backends
are the CPU's kernels. It has no graphs and no compiler, its memory has no measure, a target that is
no class is an error, and long rows are left out. So it shows that the tests are in order, and of
the kernels nothing.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import labelsmooth  # noqa: F401, all of whose modules are changed below
from labelsmooth._backends import choose, native

GPU = torch.device("cuda", 0)
LEFT_OUT = ["captured", "compile", "its_gradient", "below", "beyond", "no_class", "bad_targets"]
LEFT_OUT += ["bad targets", "262144", "140000", "more_rows", "two_to_the_31"]
WAIT = {"item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "equal"}
MIX = {"copy_", "to", "__getitem__"}  # may take tensors of both devices


class StandIn(TorchFunctionMode):
    """Knows storages, which views share."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = set[int]()  # the GPU's storages
        self.waiting_is_an_error = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = func.__name__, kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        given = list(_tensors([args, kwargs]))
        on_gpu = [_storage(tensor) in self.memory for tensor in given]
        if name == "__get__" and func.__self__.__name__ in ("device", "is_cuda", "is_cpu"):
            if not on_gpu[0]:
                return func(*args, **kwargs)
            return {"device": GPU, "is_cuda": True, "is_cpu": False}[func.__self__.__name__]
        dims = [tensor.dim() for tensor in given]
        if (
            name not in MIX
            and any(on_gpu)
            and any(dim and not gpu for dim, gpu in zip(dims, on_gpu, strict=True))
        ):
            raise RuntimeError(f"{name}: tensors of both devices, {on_gpu}")
        if name in WAIT and any(on_gpu) and self.waiting_is_an_error:
            raise RuntimeError(f"{name} waits for the GPU")
        return self._run(func, args, kwargs, given, on_gpu)

    def _run(
        self, func: Any, args: Any, kwargs: Any, given: list[Tensor], on_gpu: list[bool]
    ) -> Any:
        is_operator = isinstance(func, torch._ops.OpOverload)  # "cuda" is a backend's name there
        named = [] if is_operator else [d for d in (*args, *kwargs.values()) if _is_device(d)]
        if func is Tensor.cuda:
            func, args, named = Tensor.to, (args[0], "cpu"), [GPU]
        elif func is Tensor.cpu:
            named = [torch.device("cpu")]
        elif func is torch.ops.labelsmooth.scale_.default:
            func = Tensor.mul_
        if named:
            args = [torch.device("cpu") if _is_device(a) else a for a in args]
            kwargs = {k: torch.device("cpu") if _is_device(v) else v for k, v in kwargs.items()}
        known = {_storage(tensor) for tensor in given}
        made = func(*args, **kwargs)
        where = torch.device(named[0]).type == "cuda" if named else any(on_gpu)
        if func in (Tensor.to, Tensor.cpu) and where != on_gpu[0]:
            made = made.clone()
        for storage in {_storage(tensor) for tensor in _tensors(made)} - known:
            (self.memory.add if where else self.memory.discard)(storage)
        return made


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)


def _storage(tensor: Tensor) -> int:
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()._cdata


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device) or (isinstance(value, str) and value in ("cpu", "cuda"))


class Stream:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


MODE = StandIn()
CUDA = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "get_device_capability": lambda *_: (9, 0),
    "get_device_properties": lambda *_: SimpleNamespace(
        name="stand-in", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30
    ),
    "get_device_name": lambda *_: "stand-in",
    "mem_get_info": lambda *_: (80 << 30, 80 << 30),
    "memory_allocated": lambda *_: 0,
    "max_memory_allocated": lambda *_: 0,
    "reset_peak_memory_stats": lambda *_: None,
    "synchronize": lambda *_: None,
    "Stream": Stream,
    "stream": lambda _: nullcontext(),
    "current_stream": Stream,
    "default_stream": Stream,
    "_sleep": lambda _: None,
    "set_sync_debug_mode": lambda to: setattr(MODE, "waiting_is_an_error", to == "error"),
}


@pytest.hookimpl(tryfirst=True)  # before conftest.py asks for a GPU
def pytest_load_initial_conftests() -> None:
    for name, value in CUDA.items():
        setattr(torch.cuda, name, value)
    chosen = choose.choose_backend

    def choose_backend(name: str, device: torch.device) -> Any:
        on_gpu = name in ("cuda", "triton") or (name == "auto" and device.type == "cuda")
        return native if on_gpu else chosen(name, device)

    for module in [m for n, m in sys.modules.items() if n.startswith("labelsmooth")]:
        if getattr(module, "choose_backend", None) is chosen:
            module.choose_backend = choose_backend
    run = threading.Thread.run

    def run_with_a_gpu(thread: threading.Thread) -> None:
        with MODE:
            run(thread)

    threading.Thread.run = run_with_a_gpu
    MODE.__enter__()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of each test, the first and the last case of a GPU's that are not left out."""
    cases = dict[str, list[pytest.Item]]()
    for item in items:
        if item.get_closest_marker("gpu") and not any(word in item.nodeid for word in LEFT_OUT):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    taken = {id(item) for case in cases.values() for item in (case[0], case[-1])}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in taken])
    items[:] = [item for item in items if id(item) in taken]
