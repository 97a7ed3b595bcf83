"""Loads, stores and atomics of the PTX simulator, and what it counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptxsim import LaunchError, Sim, SimError
from ptxsim.global_memory import GlobalMemory
from ptxsim.testing import THREADS, buffer, kernel, launch, numbers


@pytest.mark.parametrize(
    ("load", "registers", "size"),
    [
        ("b8", "%h0", 1),
        ("b16", "%h0", 2),
        ("b32", "%r0", 4),
        ("b64", "%l0", 8),
        ("v2.b16", "{%h0, %h1}", 4),
        ("v2.b32", "{%r0, %r1}", 8),
        ("v4.b16", "{%h0, %h1, %h2, %h3}", 8),
        ("v4.b32", "{%r0, %r1, %r2, %r3}", 16),
        ("v2.b64", "{%l0, %l1}", 16),
        ("v8.b32", "{%r0, %r1, %r2, %r3, %r4, %r5, %r6, %r7}", 32),
        ("v4.b64", "{%l0, %l1, %l2, %l3}", 32),
    ],
)
@pytest.mark.parametrize("qualifier", ["", ".nc.L1::no_allocate.L2::128B"])
def test_copy_with_every_width(load: str, registers: str, size: int, qualifier: str) -> None:
    source, target = buffer(THREADS * size, "u1"), buffer(THREADS * size, "u1")
    source[:] = np.random.default_rng(1).integers(0, 256, source.size)
    body = f"""mad.wide.u32 %l8, %r30, {size}, %l16; mad.wide.u32 %l9, %r30, {size}, %l17;
        ld.global{qualifier}.{load} {registers}, [%l8]; st.global.{load} [%l9], {registers};"""
    report = launch(body, [source, target])
    assert np.array_equal(source, target)
    assert report.read_bytes == report.written_bytes == source.size
    assert report.read_efficiency == report.write_efficiency == 1
    assert report.tensor(source).read_distinct_bytes == source.size


def test_parameters_are_not_global_memory() -> None:
    """Nor counted as such through a pointer."""
    body = "mov.b64 %l0, p1; ld.param.u64 %l1, [%l0]; st.global.u64 [%l16], %l1;"
    out, other = buffer(1, "u8"), buffer(1, "u8")
    report = Sim(kernel(body, 2)).launch("k", 1, 1, [out, other])
    assert out[0] != 0
    assert (report.read_bytes, report.written_bytes) == (0, 8)


def test_128_bit_registers() -> None:
    source = numbers(THREADS * 4, "u4")
    target = np.zeros_like(source)
    body = """.reg .b128 %q; mad.wide.u32 %l8, %r30, 16, %l16; mad.wide.u32 %l9, %r30, 16, %l17;
        ld.global.b128 %q, [%l8]; mov.b128 {%l0, %l1}, %q; mov.b128 %q, {%l1, %l0};
        st.global.b128 [%l9], %q;"""
    launch(body, [source, target])
    assert np.array_equal(target.reshape(-1, 2, 2), source.reshape(-1, 2, 2)[:, ::-1])


def test_signs_and_narrow_registers() -> None:
    source, target = np.arange(256, dtype="u1")[:THREADS] + np.uint8(100), np.zeros(THREADS, "i4")
    body = """mad.wide.u32 %l8, %r30, 1, %l16; mad.wide.u32 %l9, %r30, 4, %l17;
        ld.global.s8 %r0, [%l8]; st.global.b32 [%l9], %r0;"""
    launch(body, [source, target])
    assert np.array_equal(target, source.view("i1"))


def test_generic_addresses_go_to_any_space() -> None:
    target = np.zeros(THREADS, "u4")
    body = """.shared .align 4 .b8 s[512];
        mad.wide.u32 %l0, %r29, 4, %l16; mov.u64 %l1, s; cvta.shared.u64 %l2, %l1;
        mad.wide.u32 %l3, %r29, 4, %l2; and.b32 %r0, %r29, 1; setp.eq.u32 %p0, %r0, 1;
        selp.b64 %l4, %l0, %l3, %p0; st.b32 [%l4], %r29; ld.b32 %r1, [%l4];
        isspacep.shared %p1, %l4; @%p1 add.u32 %r1, %r1, 1000; st.global.b32 [%l0], %r1;"""
    launch(body, [target])
    thread = np.arange(THREADS)
    assert np.array_equal(target, np.where(thread % 2 == 1, thread, thread + 1000))


def test_local_arrays_are_private() -> None:
    target = np.zeros(THREADS, "u4")
    body = """.local .align 4 .b8 a[16]; mov.u64 %l0, a; st.local.b32 [%l0], %r29;
        add.u32 %r1, %r29, 7; st.local.b32 [%l0+12], %r1; cvta.local.u64 %l1, %l0;
        ld.b32 %r2, [%l1]; ld.local.b32 %r3, [%l0+12]; add.u32 %r2, %r2, %r3;
        mad.wide.u32 %l2, %r29, 4, %l16; st.global.b32 [%l2], %r2;"""
    launch(body, [target])
    assert np.array_equal(target, 2 * np.arange(THREADS) + 7)


def test_module_variables() -> None:
    outside = "\n.const .align 4 .b32 table[4] = {5, 6, 7, 0x10};\n.global .b32 total = 3;\n"
    target = np.zeros(THREADS, "u4")
    body = """mov.u64 %l0, table; and.b32 %r0, %r29, 3; mad.wide.u32 %l1, %r0, 4, %l0;
        ld.const.b32 %r1, [%l1]; red.global.add.u32 [total], 1; bar.sync 0;
        ld.volatile.global.b32 %r2, [total]; add.u32 %r1, %r1, %r2;
        mad.wide.u32 %l2, %r29, 4, %l16; st.global.b32 [%l2], %r1;"""
    launch(body, [target], outside=outside)
    assert np.array_equal(target, np.tile([5, 6, 7, 16], 32) + 3 + THREADS)


@pytest.mark.parametrize("sched", ["minpc", "random"])
@pytest.mark.parametrize(
    ("op", "start", "expected"),
    [
        ("add.u32", 1, 1 + sum(range(256))),
        ("max.s32", 7, 255),
        ("min.s32", 100, 0),
        ("and.b32", 0xFFFF, 0),
        ("or.b32", 0, 255),
        ("xor.b32", 0, 0),
        ("inc.u32", 3, 3 + 256),
    ],
)
def test_atomics(op: str, start: int, expected: int, sched: str) -> None:
    value = "99999" if op.startswith("inc") else "%r30"
    total, seen = np.array([start], "u4"), np.zeros(256, "u4")
    body = f"""atom.global.{op} %r0, [%l16], {value}; mad.wide.u32 %l0, %r30, 4, %l17;
        st.global.b32 [%l0], %r0;"""
    launch(body, [total, seen], grid=2, sched=sched)
    assert total[0] == expected
    if op == "add.u32":  # each thread saw another partial sum
        assert len(set(seen.tolist())) in (255, 256)


def test_compare_and_swap_lets_one_win() -> None:
    lock, winners = np.zeros(1, "u4"), np.zeros(1, "u4")
    body = """add.u32 %r1, %r30, 1; atom.global.cas.b32 %r0, [%l16], 0, %r1;
        setp.eq.u32 %p0, %r0, 0; @%p0 atom.global.add.u32 %r2, [%l17], 1;"""
    launch(body, [lock, winners], sched="random", seed=5)
    assert winners[0] == 1
    assert 1 <= lock[0] <= THREADS


def test_barrier_with_a_vote() -> None:
    flags, target = np.zeros(THREADS, "u4"), np.zeros(THREADS, "u4")
    flags[[3, 90]] = 1
    body = """mad.wide.u32 %l0, %r29, 4, %l16; mad.wide.u32 %l1, %r29, 4, %l17;
        ld.global.b32 %r0, [%l0]; setp.ne.u32 %p0, %r0, 0; bar.red.popc.u32 %r1, 0, %p0;
        bar.red.or.pred %p1, 0, %p0; bar.red.and.pred %p2, 0, %p0;
        @%p1 add.u32 %r1, %r1, 10; @%p2 add.u32 %r1, %r1, 100; st.global.b32 [%l1], %r1;"""
    for sched in ("minpc", "random"):
        launch(body, [flags, target], sched=sched)
        assert (target == 12).all()


def test_named_barriers_of_half_a_block() -> None:
    """Each half has a barrier of its own."""
    target = np.zeros(THREADS, "u4")
    body = """.shared .align 4 .b8 s[512]; mov.u32 %r0, s; mad.lo.u32 %r1, %r29, 4, %r0;
        st.shared.b32 [%r1], %r29; shr.u32 %r2, %r29, 6; add.u32 %r2, %r2, 1;
        bar.sync %r2, 64; xor.b32 %r3, %r29, 63; mad.lo.u32 %r4, %r3, 4, %r0;
        ld.shared.b32 %r5, [%r4]; mad.wide.u32 %l0, %r29, 4, %l16; st.global.b32 [%l0], %r5;"""
    for sched in ("minpc", "random"):
        launch(body, [target], sched=sched)
        assert np.array_equal(target, np.arange(THREADS) ^ 63)


def test_sectors() -> None:
    for stride, shift, sectors in ((4, 0, 4), (4, 1, 5), (8, 0, 8), (32, 0, 32), (0, 0, 1)):
        source, target = buffer(2048, "f4", shift=shift), buffer(32, "f4")
        body = f"""mad.wide.u32 %l0, %r29, {stride}, %l16; ld.global.b32 %r0, [%l0];
            mad.wide.u32 %l1, %r29, 4, %l17; st.global.b32 [%l1], %r0;"""
        report = launch(body, [source, target], block=32)
        assert sum(a.sectors for a in report.accesses if not a.write) == sectors


@pytest.mark.parametrize(
    ("width", "stride", "extra"),
    [
        ("b32", 4, 0),
        ("b32", 8, 1),  # two lanes a bank
        ("b32", 128, 31),  # all on one bank
        ("b32", 132, 0),  # padded: none
        ("b32", 0, 0),  # all the same word
        ("v4.b32", 16, 0),  # four passes are needed anyway
        ("v4.b32", 32, 4),  # and eight here
        ("b16", 2, 0),
    ],
)
def test_bank_conflicts(width: str, stride: int, extra: int) -> None:
    registers = {"b32": "%r0", "b16": "%h0", "v4.b32": "{%r0, %r1, %r2, %r3}"}[width]
    body = f""".shared .align 16 .b8 s[8192]; mov.u32 %r5, s; mov.b32 %r0, 0; mov.b16 %h0, 0;
        mov.b32 %r1, 0; mov.b32 %r2, 0; mov.b32 %r3, 0; mad.lo.u32 %r6, %r29, {stride}, %r5;
        st.shared.{width} [%r6], {registers};"""
    assert launch(body, [], block=32).bank_conflicts == extra


def test_strided_tensors_have_holes() -> None:
    """A store between two rows is out of bounds."""
    base = torch.zeros(4, 40)
    view = base[:, :32]
    body = "mad.wide.u32 %l0, %r29, 4, %l16; st.global.b32 [%l0], %r29;"
    launch(body, [view], block=32)
    with pytest.raises(SimError, match="out-of-bounds global access: block 0 thread 32 "):
        launch(body, [view], block=33)
    launch(body, [base], block=33)


def test_views_of_one_tensor_that_overlap() -> None:
    """A later view is not taken for a hole in an earlier one's span; a pointer into both means the
    view that was added last."""
    rows = torch.zeros(4, 8)
    first, second = rows[:, :3], rows[1:, 3:6]  # the second lies between the rows of the first
    memory = GlobalMemory()
    spans = [memory.add(view) for view in (first, second)]
    assert spans[0] is not spans[1]
    for view, own in ((first, spans[0]), (second, spans[1]), (first[1:3], spans[0])):
        assert memory.add(view) is own
        address = memory.device_address(view.data_ptr())
        assert address == own.address_of(view)
        assert own.outside(np.array([address]), 4) is None
        hole = np.array([address + 3 * 4])
        assert own.outside(hole, 4) is not None


def test_rows_that_lie_further_apart_than_32_bits() -> None:
    """In 8 GiB, of which only the rows are ever touched."""
    columns, stride = 256, (1 << 32) + (1 << 19)
    base = np.empty(stride + columns, "u2")
    x = np.lib.stride_tricks.as_strided(base, (2, columns), (2 * stride, 2))
    x[:] = np.arange(2 * columns).reshape(2, columns)
    y = buffer(2 * columns, "u2")
    row = f"mov.u32 %r0, %ctaid.x; cvt.u64.u32 %l0, %r0; mul.lo.s64 %l0, %l0, {2 * stride};"
    copy = """add.s64 %l1, %l16, %l0; mad.wide.u32 %l1, %r29, 2, %l1; ld.global.b16 %h0, [%l1];
        mad.wide.u32 %l2, %r30, 2, %l17; st.global.b16 [%l2], %h0;"""
    launch(row + copy, [x, y], grid=2, block=columns)
    assert np.array_equal(y, np.arange(2 * columns))
    with pytest.raises(SimError, match="out-of-bounds global access: block 1 "):
        launch(row + "and.b64 %l0, %l0, 0xFFFFFFFF;" + copy, [x, y], grid=2, block=columns)


def test_outputs_must_be_written_before_they_are_read() -> None:
    out = torch.zeros(THREADS)
    text = kernel("mad.wide.u32 %l0, %r29, 4, %l16; {} [%l0], %r29;".format("st.global.b32"), 1)
    sim = Sim(text)
    sim.output(out)
    sim.launch("k", 1, 64, [out])
    assert not sim.written(out)
    sim.launch("k", 1, 128, [out])
    assert sim.written(out)
    reader = Sim(kernel("ld.global.b32 %r0, [%l16];", 1))
    reader.output(out)
    with pytest.raises(SimError, match="uninitialised global"):
        reader.launch("k", 1, 1, [out])


def test_two_blocks_that_write_one_word_are_reported() -> None:
    out = np.zeros(THREADS, "u4")
    body = "mad.wide.u32 %l0, %r29, 4, %l16; st.global.b32 [%l0], 1; ld.global.b32 %r0, [%l0];"
    warnings = launch(body, [out], grid=2).warnings
    assert {w.split(":")[0] for w in warnings} == {
        "global word written by two blocks",
        "global read of what another block wrote",
    }
    assert not launch(body, [out], grid=1).warnings


def test_launches_that_a_device_refuses() -> None:
    out = np.zeros(THREADS, "u4")
    text = kernel("", 1).replace("p0)", "p0)\n.reqntid 64, 1, 1\n")
    Sim(text).launch("k", 1, 64, [out])
    for grid, block, args in ((1, 128, [out]), (1, 2048, [out]), (0, 64, [out]), (1, 64, [out, 1])):
        with pytest.raises(LaunchError):
            Sim(text).launch("k", grid, block, args)
    with pytest.raises(LaunchError, match="multiple of the cluster"):
        Sim(text).launch("k", 3, 64, [out], cluster=2)


def test_an_endless_loop_is_stopped() -> None:
    with pytest.raises(SimError, match="no end after 1000 steps"):
        launch("again: bra again;", [], max_steps=1000)
