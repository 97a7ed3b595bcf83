"""What the PTX simulator refuses, shown on a few instructions each; no compiler needed."""

from __future__ import annotations

import numpy as np
import pytest

from ptxsim import Sim, SimError, UnsupportedError
from ptxsim.testing import THREADS, buffer, elementwise, kernel, launch

OWN = """.shared .align 16 .b8 s[2048]; mov.u32 %r0, s; mad.lo.u32 %r1, %r29, 16, %r0;
    xor.b32 %r2, %r29, {partner}; mad.lo.u32 %r2, %r2, 16, %r0;
    mad.wide.u32 %l0, %r30, 4, %l16;"""
STORE, LOAD = "st.shared.b32 [%r1], %r29;", "ld.shared.b32 %r5, [%r2];"
SYNC, OUT = "bar.sync 0;", "st.global.b32 [%l0], %r5;"


@pytest.mark.parametrize("sched", ["minpc", "random"])
@pytest.mark.parametrize(
    ("partner", "body", "message"),
    [
        (64, STORE + SYNC + LOAD + OUT, None),
        (64, STORE + LOAD + OUT, r"race|uninitialised"),
        # write after read: the second round overwrites what others still read
        (64, STORE + SYNC + LOAD + STORE + OUT, "race"),
        (64, STORE + SYNC + LOAD + SYNC + STORE + OUT, None),
        # within a warp: its own barrier is enough, none at all is not
        (1, STORE + "bar.warp.sync -1;" + LOAD + OUT, None),
        (1, STORE + LOAD + OUT, "race"),
        (64, STORE + "bar.warp.sync -1;" + LOAD + OUT, r"race|uninitialised"),
        # a fence orders, but does not wait
        (64, STORE + "membar.cta;" + LOAD + OUT, r"race|uninitialised"),
        # all threads write the same word: harmless if they write the same
        (64, "st.shared.b32 [%r0], 7;" + SYNC + "ld.shared.b32 %r5, [%r0];" + OUT, None),
        (64, "st.shared.b32 [%r0], %r29;", r"race|different values"),
        # an atomic does not race with another, but with a plain store
        (64, STORE + SYNC + "atom.shared.add.u32 %r5, [%r0], 1;" + OUT, None),
        (64, STORE + SYNC + "red.shared.add.u32 [%r0], 1; ld.shared.b32 %r5, [%r0];", "race"),
    ],
)
def test_shared_memory_races(partner: int, body: str, message: str | None, sched: str) -> None:
    out = buffer(THREADS, "u4")
    text = OWN.format(partner=partner) + body
    if message is None:
        assert not launch(text, [out], sched=sched).warnings
    else:
        with pytest.raises(SimError, match=message):
            launch(text, [out], sched=sched)


def test_halves_of_a_word_do_not_race() -> None:
    """As in bfloat16 kernels."""
    out = buffer(THREADS, "u2")
    body = """.shared .align 4 .b8 s[256]; mov.u32 %r0, s; mad.lo.u32 %r1, %r29, 2, %r0;
        cvt.u16.u32 %h0, %r29; st.shared.b16 [%r1], %h0; ld.shared.b16 %h1, [%r1];
        mad.wide.u32 %l0, %r29, 2, %l16; st.global.b16 [%l0], %h1;"""
    for sched in ("minpc", "random"):
        launch(body, [out], sched=sched)
        assert np.array_equal(out, np.arange(THREADS))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("ld.global.b32 %r0, [%l16+512];", "out-of-bounds global access: block 0 thread 0"),
        ("ld.global.b32 %r0, [%l16+-4];", "out-of-bounds global access"),
        ("ld.global.b64 %l0, [%l16+508];", "misaligned 8-byte access"),
        ("st.global.b64 [%l16+508], %l17;", "misaligned 8-byte access"),
        ("ld.global.v2.b32 {%r0, %r1}, [%l16+508];", "misaligned 8-byte access"),
        ("mov.b64 %l0, 64; ld.global.b32 %r0, [%l0];", "wild global access"),
        ("mov.b64 %l0, 0; ld.b32 %r0, [%l0];", "wild global access"),
        ("mov.u32 %r0, s; ld.shared.b32 %r1, [%r0+128];", "out-of-bounds shared access"),
        ("mov.u32 %r0, s; ld.shared.b32 %r1, [%r0];", "read of uninitialised shared memory"),
        ("mov.u32 %r0, s; st.shared.b32 [%r0+2], %r29;", "misaligned 4-byte access"),
        ("mov.u64 %l0, a; ld.local.b32 %r1, [%l0];", "read of uninitialised local memory"),
        ("mov.u64 %l0, a; st.local.b32 [%l0+16], 1;", "out-of-bounds local access"),
        ("mov.u32 %r0, s; red.shared.add.u32 [%r0], 1;", "atomic on uninitialised memory"),
        ("st.global.b32 [%l16], %r29;", "different values to one address"),
        ("setp.ge.u32 %p0, %r29, 70; @%p0 trap;", "trap: block 0 thread 70"),
        ("mbarrier.arrive.shared.b64 _, [m];", "mbarrier used before its initialisation"),
        (
            "setp.lt.u32 %p0, %r29, 32; @%p0 bar.sync 0, 64;",
            "deadlock: 32 threads wait at `@%p0 bar.sync 0, 64`",
        ),
    ],
)
def test_faulty_accesses(body: str, message: str) -> None:
    variables = """.shared .align 16 .b8 s[64]; .local .align 8 .b8 a[16];
        .shared .align 8 .b8 m[8];"""
    with pytest.raises(SimError) as error:
        launch(variables + body, [buffer(THREADS, "u4")])
    assert message in str(error.value)


def test_the_message_names_the_source_line() -> None:
    text = kernel("\n.loc 1 42 7\nld.global.b32 %r0, [%l16+512];", 1)
    text = text.replace(".address_size 64", '.address_size 64\n.file 1 "rows.cu"')
    with pytest.raises(SimError, match=r"\[%l16\+512\]` at rows.cu:42"):
        Sim(text).launch("k", 1, 32, [buffer(THREADS, "u4")])


@pytest.mark.parametrize(
    "code",
    ["wgmma.fence.sync.aligned;", "add.cc.u32 %d, %a, %a;", "tex.1d.v4.f32.f32 %d, [%a, {%a}];"],
)
def test_unknown_instructions_are_refused(code: str) -> None:
    with pytest.raises(UnsupportedError, match="not supported"):
        elementwise(code, [np.zeros(4, "u4")], "u4")


def test_chunks_change_nothing() -> None:
    """Neither results nor counts."""
    columns, rows = 100, 50
    x = buffer(rows * columns, "f4")
    x[:] = np.random.default_rng(0).standard_normal(x.size)
    body = f"""mov.u32 %r0, %ctaid.x; mad.wide.u32 %l0, %r0, {4 * columns}, %l16;
        mov.u32 %r1, %r29; mov.f32 %r2, 0f00000000;
        loop: mad.wide.u32 %l1, %r1, 4, %l0; ld.global.f32 %r3, [%l1]; add.f32 %r2, %r2, %r3;
        add.u32 %r1, %r1, 32; setp.lt.u32 %p0, %r1, {columns}; @%p0 bra loop;
        mad.wide.u32 %l2, %r30, 4, %l17; st.global.f32 [%l2], %r2;"""
    seen = []
    for lanes in (32, 256, 1 << 20):
        for sched in ("minpc", "random"):
            out = buffer(rows * 32, "f4")
            report = launch(body, [x, out], grid=rows, block=32, lanes=lanes, sched=sched)
            seen.append((out.tobytes(), report.read_bytes, report.lines()))
    assert all(other == seen[0] for other in seen)


def test_matrices_of_a_warp() -> None:
    """ldmatrix and stmatrix: lane 4 r + k holds elements 2 k, 2 k + 1 of row r."""
    out = buffer(4 * 32, "u4")
    body = """.shared .align 16 .b8 s[512]; .shared .align 16 .b8 t[512]; mov.u32 %r0, s;
        mad.lo.u32 %r1, %r29, 16, %r0; mov.u32 %r2, t; mad.lo.u32 %r3, %r29, 16, %r2;
        mul.lo.u32 %r4, %r29, 8; add.u32 %r5, %r4, 1; mov.u32 %r6, 0;
        cvt.u16.u32 %h0, %r4; cvt.u16.u32 %h1, %r5; mov.b32 %r7, {%h0, %h1};
        add.u32 %r8, %r7, 0x00020002; add.u32 %r9, %r7, 0x00040004; add.u32 %r10, %r7, 0x00060006;
        st.shared.v4.b32 [%r1], {%r7, %r8, %r9, %r10}; bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x4.{trans}shared.b16 {%r11, %r12, %r13, %r14}, [%r1];
        stmatrix.sync.aligned.m8n8.x4.{trans}shared.b16 [%r3], {%r11, %r12, %r13, %r14};
        mad.wide.u32 %l0, %r29, 16, %l16; st.global.v4.b32 [%l0], {%r11, %r12, %r13, %r14};
        bar.sync 0; ld.shared.b32 %r15, [%r3]; setp.ne.u32 %p0, %r15, %r7; @%p0 trap;"""
    elements = np.arange(256, dtype="u2").reshape(4, 8, 8)
    for trans, matrices in (("", elements), ("trans.", elements.swapaxes(1, 2))):
        launch(body.replace("{trans}", trans), [out], block=32)
        held = np.ascontiguousarray(matrices).view("u4").reshape(4, 32)
        assert np.array_equal(out.reshape(32, 4).T, held)
