"""The least time that a number of bytes and of instructions takes a GPU: floors, not measurements.

The bytes over the bandwidth, where each comes from memory (a row that is read again soon may come
from the L2 cache); and one instruction of each of the four schedulers of a multiprocessor in each
cycle. What else takes time is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

LOGITS = 1 << 28  # 8192 rows of 32768 classes
LANES = 4 * 32  # for which a multiprocessor's schedulers issue an instruction in a cycle


@dataclass(frozen=True)
class Gpu:
    name: str
    multiprocessors: int
    ghz: float  # boost
    bandwidth: float  # GB/s

    def memory_ms(self, bytes_a_logit: float) -> float:
        return bytes_a_logit * LOGITS / (self.bandwidth * 1e9) * 1e3

    def issue_ms(self, instructions_a_logit: float) -> float:
        """Instructions of warps, times 32."""
        a_second = self.multiprocessors * LANES * self.ghz * 1e9
        return instructions_a_logit * LOGITS / a_second * 1e3


# By compute capability, of NVIDIA's data sheets of A100 80GB SXM, H100 SXM and HGX B200 and the
# white paper of the Ada architecture; at the clocks of H100 and B200 the sheets' float32 rates (67
# and 75 TFLOPS) are two operations a lane and cycle. On an RTX 4090 the extension runs its code for
# sm_80, Triton's kernels code for sm_89.
GPUS = {
    80: Gpu("A100", 108, 1.41, 2039),
    90: Gpu("H100", 132, 1.98, 3350),
    100: Gpu("B200", 148, 1.98, 8000),
    89: Gpu("RTX 4090", 128, 2.52, 1008),
}
