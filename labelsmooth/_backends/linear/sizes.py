"""Sizes and dtypes of the fused projection."""

import platform

import torch
from torch import Tensor

from ..._call.problem import CommonOptions, Inputs, LinearInputs
from .. import native


def _multiplies_bfloat16_fast() -> bool:
    if platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if not torch._C._has_mkldnn:
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


FAST_BFLOAT16 = _multiplies_bfloat16_fast()


def rows_of_chunk(
    rows: int, features: int, dtype: torch.dtype, device: torch.device, asked: int | None
) -> int:
    """R, by shapes and dtype alone: of equal chunks of about D rows, so that the slab is no larger
    than the weight once D reaches the least R that keeps products fast."""
    if asked is not None:
        return min(asked, max(rows, 1))
    least, most, multiple = 1024, 4096, 128
    if device.type == "cpu":
        least, most, multiple = 2048 // product_dtype(dtype, device).itemsize, 1024, 8
    chunks = -(-rows // min(max(features, least), most)) or 1
    return -(-rows // (chunks * multiple)) * multiple or multiple


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Of the slab and all products: float32 where the CPU has no fast ones of a 16-bit dtype."""
    if device.type != "cpu" or dtype.itemsize > 2 or (dtype == torch.bfloat16 and FAST_BFLOAT16):
        return dtype
    return torch.float32


def dtype_of_sums(dtype: torch.dtype, several: bool) -> torch.dtype:
    """Of the weight's gradient: several chunks would lose digits if they were rounded each time,
    and one of float16 its small elements before they are scaled."""
    if dtype == torch.float16 or (dtype == torch.bfloat16 and several):
        return torch.float32
    return dtype


def from_logits(inputs: LinearInputs, dtype: torch.dtype) -> Inputs:
    """The call as one from logits without memory."""
    shape = (inputs.hidden.shape[0], inputs.linear_weight.shape[0])
    return Inputs(inputs.hidden.new_empty(1, dtype=dtype).expand(shape), *inputs[3:])


def bias_in(
    linear_bias: Tensor | None, dtype: torch.dtype, options: CommonOptions
) -> Tensor | None:
    """In the dtype of the products. Where masks are looked for, its own dtype's lowest number masks
    whatever is added."""
    if linear_bias is None:
        return None
    bias = linear_bias.to(dtype)
    if options.smooth_over != "unmasked":
        return bias
    return bias.masked_fill(linear_bias <= torch.finfo(linear_bias.dtype).min, -torch.inf)


def new_empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the CPU large ones in memory that is kept from call to call."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    return native.new_empty(shape, dtype)
