"""The machine code of a kernel as a graph, and the count of what is executed of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from ptxsim import Sim
from ptxsim.body import Instruction
from ptxsim.counters import Report
from ptxsim.cuda_build import find_tool
from ptxsim.machine_code import MachineBlock, blocks_of, machine_code
from ptxsim.parser import Module
from ptxsim.testing import kernel

pytest.importorskip("scipy")

from ptxsim.executed import machine_instructions, passed

PTXAS, NVDISASM = find_tool("ptxas"), find_tool("nvdisasm")

needs_ptxas = pytest.mark.skipif(not (PTXAS and NVDISASM), reason="needs ptxas and nvdisasm")

# A loop, and what ptxas might make of it: the constant of the first sum stands before the loop.
PTX = """
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, 0;
A:
    add.f32 %r1, %r1, 0f3F800000;
    @%p1 add.f32 %r2, %r2, 0f3F800000;
    @%p0 bra A;
    st.global.f32 [%l0], %r1;
"""
LISTING = """
k:
.text.k:
	//## File "ptx", line 1
        /*0000*/                   S2R R0, SR_TID.X ;
	//## File "ptx", line 3
        /*0010*/                   MOV R5, 0x3f800000 ;
	//## File "ptx", line 2
        /*0020*/                   BSSY B0, `(.L_x_1) ;
.L_x_0:
	//## File "ptx", line 3
        /*0030*/                   FADD R1, R1, R5 ;
	//## File "ptx", line 4
        /*0040*/               @P1 FADD R2, R2, R5 ;
	//## File "ptx", line 5
        /*0050*/              @!P0 BRA `(.L_x_0) ;
	//## File "ptx", line 6
        /*0060*/                   BSYNC B0 ;
.L_x_1:
        /*0070*/               @P2 EXIT ;
        /*0080*/                   STG.E desc[UR4][R2.64], R1 ;
	//## File "ptx", line 7
        /*0090*/                   EXIT ;
.L_x_2:
        /*00a0*/                   BRA `(.L_x_2);
        /*00b0*/                   NOP;
"""


def code_of_ptx() -> list[Instruction]:
    made = Module(kernel("", 0)).kernel("k").body.code
    return (
        Module(kernel(PTX, 0)).kernel("k").body.code[len(made) - 1 :]
    )  # behind what it begins with


def test_the_graph_of_a_listing() -> None:
    blocks = blocks_of(LISTING)
    assert [len(block.code) for block in blocks] == [3, 3, 1, 1, 2]
    assert [block.successors for block in blocks] == [[1], [1, 2], [3], [4], []]
    assert [block.leaves for block in blocks] == [False, False, False, True, True]
    assert [i.source for i in blocks[1].code] == [2, 3, 4]


def test_a_branch_may_have_its_predicate_before_its_target() -> None:
    listing = LISTING.replace("@!P0 BRA `(.L_x_0)", "BRA !P0, `(.L_x_0)")
    assert listing != LISTING
    assert blocks_of(listing)[1].successors == [1, 2]


def test_no_flow_is_near_to_counts_of_something_else() -> None:
    with pytest.raises(RuntimeError, match="no flow"):
        passed(blocks_of(LISTING), code_of_ptx(), [3, 3, 0, 50, 0, 90, 3])


def test_code_that_was_moved_or_made_a_predicate_is_counted_where_it_stands() -> None:
    """3 warps, of which each goes round 10 times, and 1 stores."""
    executions = [3, 3, 30, 7, 30, 1, 3]
    assert passed(blocks_of(LISTING), code_of_ptx(), executions) == pytest.approx([3, 30, 3, 3, 1])


# Each thread adds as many times as the second tensor says; the first load and the store of a turn
# may not be left out.
LOOP = """
    mov.u32 %r0, 0;
    mul.wide.u32 %l0, %r30, 4;
    add.s64 %l1, %l16, %l0;
    ld.global.u32 %r4, [%l17];
AGAIN:
    setp.ge.s32 %p1, %r0, %r4;
    @%p1 bra DONE;
    ld.volatile.global.f32 %r5, [%l1];
    ex2.approx.ftz.f32 %r6, %r5;
    st.volatile.global.f32 [%l1], %r6;
    add.s32 %r0, %r0, 1;
    bra AGAIN;
DONE:
"""
WARPS = 6


def launched(turns: int) -> Report:
    values = np.ones(WARPS * 32, np.float32)
    ptx = kernel(LOOP, 2, arch=90)
    return Sim(ptx).launch("k", 2, WARPS // 2 * 32, [values, np.array([turns], np.int32)])


@needs_ptxas
def test_a_loop_that_ptxas_unrolls() -> None:
    """Its longest copy makes several turns at a time, and what each time costs is its length."""
    assert PTXAS
    blocks = machine_code(launched(1).module, "k", PTXAS)
    loop = max((b for n, b in enumerate(blocks) if n in b.successors), key=lambda b: len(b.code))
    at_a_time = sum(i.is_a("MUFU") for i in loop.code)
    assert at_a_time > 1
    counts = [machine_instructions(launched(n * at_a_time), PTXAS) for n in range(1, 9)]
    assert set(np.diff(counts)) == {WARPS * len(loop.code)}
    assert counts[0] < WARPS * (len(loop.code) + 40)


@needs_ptxas
def test_lines_do_not_change_the_code(tmp_path: Path) -> None:
    assert PTXAS
    module = Module(kernel(LOOP, 2, arch=90))
    (tmp_path / "k.ptx").write_text(kernel(LOOP, 2, arch=90))
    command = [PTXAS, "-arch", "sm_90", str(tmp_path / "k.ptx"), "-o", str(tmp_path / "k.cubin")]
    subprocess.run(command, check=True)
    listing = subprocess.check_output(
        [NVDISASM, "--print-code", str(tmp_path / "k.cubin")], text=True
    )

    def text(blocks: list[MachineBlock]) -> list[list[tuple[str, str, str | None]]]:
        return [[(i.opcode, i.operands, i.guard) for i in block.code] for block in blocks]

    assert text(machine_code(module, "k", PTXAS)) == text(blocks_of(listing))
