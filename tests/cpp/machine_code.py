"""What the compiler made of the kernels' loops: machine_code.py OBJDUMP LIBRARY SET...

Of float32 and 16-bit logits, for each of the instruction sets:

- the sums over a row's classes call nothing, and are made of the set's vector instructions: fused
  additions, the exponential's rounding or scaling, conversions from 16 bits
- nothing else calls exp, nor tiles and the entropies of probabilities any function of the
  mathematics: a lane is never taken by itself
- gradients are narrowed to 16 bits by the set's instructions, where it has them
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict

ELEMENTS = ("float", "BFloat16", "Float16")
NEON_SUMS = (r"fmla\s+v\d+\.4s", r"frintn\s+v\d+\.4s")
AVX512_SUMS = (r"vfmadd\d+ps\s.*zmm", r"vscalefps\s.*zmm")
SUMS = {
    "baseline": (),
    "avx2": (r"vfmadd\d+ps\s.*ymm",),
    "avx512": AVX512_SUMS,
    "avx512_bf16": AVX512_SUMS,
    "neon": NEON_SUMS,
    "neon_bf16": NEON_SUMS,
}
NEON_HALF = (r"fcvtl\s+v\d+\.4s, v\d+\.4h", r"fcvtn\s+v\d+\.4h, v\d+\.4s")
AVX_HALF = (r"vcvtph2ps\s", r"vcvtps2ph\s")
# Reading, then writing.
CONVERSIONS = {
    ("avx2", "Float16"): AVX_HALF,
    ("avx512", "Float16"): AVX_HALF,
    ("avx512_bf16", "Float16"): AVX_HALF,
    ("avx512_bf16", "BFloat16"): (r"vperm(t2)?w\s.*zmm", r"vcvtneps2bf16\s"),
    ("neon", "Float16"): NEON_HALF,
    ("neon_bf16", "Float16"): NEON_HALF,
    ("neon_bf16", "BFloat16"): (r"u?shll\s+v\d+\.4s, v\d+\.4h", r"bfcvtn\s+v\d+\.4h"),
}
MATHEMATICS = re.compile(r"(exp2?|log|tanh)f?")


class Function:
    def __init__(self, isa: str, signature: str) -> None:
        self.name = signature.replace(f"labelsmooth::cpu::{isa}::", "").split("(")[0]
        self.code: list[str] = []
        self.calls: set[str] = set()  # of C functions

    def has(self, pattern: str) -> bool:
        return any(re.match(pattern, line) for line in self.code)


def functions_of_each_set(objdump: str, library: str) -> dict[str, list[Function]]:
    command = [objdump, "-d", "-r", "-C", "--no-show-raw-insn", library]
    functions = defaultdict(list)
    for line in subprocess.check_output(command, text=True).splitlines():
        if header := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            named = re.search(r"labelsmooth::cpu::(\w+)::", header[1])
            isa = named[1] if named else ""
            function = Function(isa, header[1])
            functions[isa].append(function)
        elif relocation := re.match(r"\s+[0-9a-f]+:\s+R_\w+(?:CALL26|JUMP26|PLT32)\s+(.*)", line):
            if called := re.fullmatch(r"(\w+)(-0x4)?", relocation[1]):
                function.calls.add(called[1])
        elif instruction := re.match(r"\s+[0-9a-f]+:\s+(\S.*)", line):
            function.code.append(instruction[1])
    return functions


def failures(isa: str, functions: list[Function]) -> list[str]:
    found = []

    def check(holds: bool, what: str) -> None:
        if not holds:
            found.append(f"{isa}: {what}")

    def of(pattern: str) -> list[Function]:
        return [f for f in functions if re.search(pattern, f.name)]

    for element in ELEMENTS:
        sums = of(f"block_sums<Row<{element},")
        rows = of(f"(RowKernel|RowResult|GroupKernel|process_by_row)<{element},")
        tiles = of(rf"(TileKernel|Tile|Column|process_element)<{element}\b")
        entropies = of(rf"RowResult<{element}, .*::entropy_of_probs\b")
        found_all = bool(sums and rows and tiles and entropies)
        check(found_all, f"{element}: no function of sums, rows, tiles or entropies")
        read, write = CONVERSIONS.get((isa, element), (None, None))
        for f in sums:
            check(not f.calls, f"{f.name} calls {f.calls}")
            for pattern in (*SUMS[isa], *([read] if read else [])):
                check(f.has(pattern), f"{f.name} has no {pattern}")
        for f in entropies:
            wrong = {name for name in f.calls if MATHEMATICS.fullmatch(name)}
            check(not wrong, f"{f.name} calls {wrong}")
        for pattern in SUMS[isa][:1]:
            check(any(f.has(pattern) for f in entropies), f"{element}: entropies have no {pattern}")
        for kind, group, forbidden in (
            ("rows", rows, re.compile("expf?|tanhf?")),  # a row's loss has one logarithm
            ("tiles", tiles, MATHEMATICS),
        ):
            for f in group:
                wrong = {name for name in f.calls if forbidden.fullmatch(name)}
                check(not wrong, f"{f.name} calls {wrong}")
            if write:
                check(any(f.has(write) for f in group), f"{element}: {kind} have no {write}")
    return found


def main(objdump: str, library: str, *sets: str) -> int:
    functions = functions_of_each_set(objdump, library)
    found = [failure for isa in sets for failure in failures(isa, functions[isa])]
    print("\n".join(found) or f"{', '.join(sets)}: as they should be")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
