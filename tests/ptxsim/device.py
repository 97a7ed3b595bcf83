"""The devices that launchers can be made to believe in."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_SHARED = 48 * 1024  # bytes of shared memory a block gets without opting in


@dataclass(frozen=True)
class Device:
    """What the launchers learn of their device."""

    arch: int
    multiprocessors: int
    shared_per_block: int  # after opting in
    shared_per_multiprocessor: int
    threads_per_multiprocessor: int = 2048
    blocks_per_multiprocessor: int = 32
    # Blocks of the largest cluster that there is room for, and what else is answered of a larger
    # one: that there are 0 of them, or a cudaError_t.
    largest_cluster: int = 16
    beyond_largest: int = 0
    driver: int = 13000  # the newest CUDA that the driver serves

    @staticmethod
    def of(arch: int) -> Device:
        """A usual device of a compute capability (80, 86, 89, 90, 100, 103, 120)."""
        kib = 1024
        if arch == 80:
            return Device(80, 108, 163 * kib, 164 * kib)
        if arch in (86, 89):
            return Device(arch, 84 if arch == 86 else 128, 99 * kib, 100 * kib, 1536, 24)
        if arch == 90:
            return Device(90, 132, 227 * kib, 228 * kib)
        if arch in (100, 103):
            return Device(arch, 148, 227 * kib, 228 * kib)
        if arch == 120:
            return Device(120, 170, 99 * kib, 100 * kib, 1536, 24)
        raise ValueError(f"no device of compute capability {arch} is described")

    def attribute(self, number: int) -> int:
        """cudaDeviceGetAttribute."""
        return {
            1: 1024,  # threads per block
            8: DEFAULT_SHARED,
            10: 32,  # warp size
            16: self.multiprocessors,
            39: self.threads_per_multiprocessor,
            75: self.arch // 10,
            76: self.arch % 10,
            81: self.shared_per_multiprocessor,
            82: 65536,  # registers per multiprocessor
            97: self.shared_per_block,
            106: self.blocks_per_multiprocessor,
            111: 1024,  # shared memory that the system reserves for each block
            120: int(self.arch >= 90),  # clusters
        }.get(number, 0)

    def active_blocks(self, threads: int, shared_bytes: int) -> int:
        """By threads and shared memory (not registers)."""
        by_shared = self.shared_per_multiprocessor // (shared_bytes + 1024)
        by_threads = self.threads_per_multiprocessor // threads
        return min(by_shared, by_threads, self.blocks_per_multiprocessor)
