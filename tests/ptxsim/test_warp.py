"""Shuffles, votes and reductions of the PTX simulator, in whole, partial and diverged warps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ptxsim import Sim, SimError
from ptxsim.testing import elementwise, kernel

pytestmark = pytest.mark.parametrize("sched", ["minpc", "random"])

LANES = np.arange(128, dtype="u4")
VALUES = np.random.default_rng(0).integers(0, 1 << 32, 128, np.uint64).astype("u4")


def run(code: str, inputs: list[Any], out: Any, sched: str, block: int = 128) -> Any:
    """%a, %b hold each thread's inputs, %d becomes the output; one block."""
    loads = "".join(
        f".reg .b32 %{name}; mad.wide.u32 %l{k}, %r30, 4, %l{16 + k};"
        f"ld.global.b32 %{name}, [%l{k}];"
        for k, name in enumerate("ab"[: len(inputs)])
    )
    last = len(inputs)
    store = f"mad.wide.u32 %l{last}, %r30, 4, %l{16 + last}; st.global.b32 [%l{last}], %d;"
    result = np.zeros(128, out)
    text = kernel(f".reg .b32 %d; {loads} {code} {store}", last + 1)
    Sim(text, sched=sched, seed=3).launch("k", 1, block, [*inputs, result])
    return result


@pytest.mark.parametrize("width", [32, 16, 8, 1])
@pytest.mark.parametrize("mode", ["bfly", "up", "down", "idx"])
@pytest.mark.parametrize("constant", [True, False])
def test_shuffle(mode: str, width: int, constant: bool, sched: str) -> None:
    """As __shfl_*_sync(mask, value, b, width): the segment's lanes, else the lane's own value."""
    clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
    amount = (
        np.full(128, 3, "u4") if constant else np.random.default_rng(1).integers(0, 32, 128, "u4")
    )
    b = "3" if constant else "%b"
    code = f"shfl.sync.{mode}.b32 %d|%p0, %a, {b}, {clamp}, -1; @!%p0 xor.b32 %d, %d, 1;"
    result = run(code, [VALUES, amount], "u4", sched)

    def source(lane: int, n: int) -> tuple[int, bool]:
        first = lane - lane % width
        target = {
            "bfly": lane ^ n,
            "up": lane - n,
            "down": lane + n,
            "idx": first + n % width,
        }[mode]
        inside = target >= first if mode == "up" else target < first + width
        return (target if inside else lane), inside

    for thread in range(128):
        lane, warp = thread % 32, thread - thread % 32
        at, inside = source(lane, int(amount[thread]))
        assert result[thread] == VALUES[warp + at] ^ (0 if inside else 1)


@pytest.mark.parametrize(
    ("op", "fn"),
    [
        ("add.u32", lambda x: np.sum(x, dtype="u4")),
        ("min.u32", np.min),
        ("max.u32", np.max),
        ("min.s32", lambda x: np.min(x.view("i4")).view("u4")),
        ("and.b32", np.bitwise_and.reduce),
        ("or.b32", np.bitwise_or.reduce),
        ("xor.b32", np.bitwise_xor.reduce),
    ],
)
def test_redux_of_warps_and_of_halves(op: str, fn: Any, sched: str) -> None:
    whole = run(f"redux.sync.{op} %d, %a, -1;", [VALUES], "u4", sched)
    assert np.array_equal(whole, np.repeat([fn(w) for w in VALUES.reshape(4, 32)], 32))
    masks = np.where(LANES % 32 < 16, 0x0000FFFF, 0xFFFF0000).astype("u4")
    halves = run(f"redux.sync.{op} %d, %a, %b;", [VALUES, masks], "u4", sched)
    assert np.array_equal(halves, np.repeat([fn(w) for w in VALUES.reshape(8, 16)], 16))


def test_redux_of_floats(sched: str) -> None:
    x = np.random.default_rng(2).standard_normal(128).astype("f4")
    x[5], x[40:72] = np.nan, np.nan
    plain = run("redux.sync.max.f32 %d, %a, -1;", [x], "f4", sched)
    nan = run("redux.sync.max.NaN.f32 %d, %a, -1;", [x], "f4", sched)
    assert np.array_equal(plain[::32], np.fmax.reduce(x.reshape(4, 32), axis=1), equal_nan=True)
    assert np.array_equal(nan[::32], np.maximum.reduce(x.reshape(4, 32), axis=1), equal_nan=True)


def test_votes(sched: str) -> None:
    flags = np.zeros(128, "u4")
    flags[32:64], flags[70] = 1, 1
    rows = flags.reshape(4, 32).astype(bool)
    code = "setp.ne.u32 %p0, %a, 0; vote.sync.{} {}, %p0, -1; {}"
    ballot = run(code.format("ballot.b32", "%d", ""), [flags], "u4", sched)
    bits = [sum(1 << n for n in range(32) if row[n]) for row in rows]
    assert np.array_equal(ballot[::32], bits)
    for mode, expected in (
        ("all", rows.all(1)),
        ("any", rows.any(1)),
        ("uni", rows.all(1) | ~rows.any(1)),
    ):
        select = code.format(f"{mode}.pred", "%p1", "selp.b32 %d, 1, 0, %p1;")
        assert np.array_equal(run(select, [flags], "u4", sched)[::32], expected)


def test_match_and_elect(sched: str) -> None:
    keys = VALUES % 3
    result = run("match.any.sync.b32 %d, %a, -1;", [keys], "u4", sched)
    for thread in range(128):
        warp = keys[thread - thread % 32 :][:32]
        assert result[thread] == sum(1 << n for n in range(32) if warp[n] == keys[thread])
    agree = np.repeat(np.array([1, 2, 3, 4], "u4"), 32)
    agree[40] = 9
    code = "match.all.sync.b32 %d|%p0, %a, -1; @%p0 xor.b32 %d, %d, 1;"
    result = run(code, [agree], "u4", sched)
    assert np.array_equal(result[::32], [0xFFFFFFFE, 0, 0xFFFFFFFE, 0xFFFFFFFE])
    leader = run("elect.sync %d|%p0, -1; @%p0 add.u32 %d, %d, 100;", [keys], "u4", sched)
    assert np.array_equal(leader, np.where(LANES % 32 == 0, 100, 0))


def test_diverged_lanes_meet_at_a_shuffle(sched: str) -> None:
    """Odd lanes take a detour; the shuffle waits for them. Each half also shuffles alone."""
    code = """
        and.b32 %r0, %r30, 1; setp.eq.u32 %p0, %r0, 0; mov.b32 %d, %a; @%p0 bra even;
        add.u32 %d, %d, 5; shfl.sync.bfly.b32 %r1, %d, 2, 31, 0xAAAAAAAA; bra join;
        even: shfl.sync.bfly.b32 %r1, %d, 4, 31, 0x55555555;
        join: shfl.sync.bfly.b32 %r2, %d, 1, 31, -1; add.u32 %d, %r1, %r2;"""
    result = run(code, [VALUES], "u4", sched)
    own = VALUES + np.where(LANES % 2 == 1, 5, 0).astype("u4")
    alone = np.where(LANES % 2 == 1, own[LANES ^ 2], own[LANES ^ 4])
    assert np.array_equal(result, alone + own[LANES ^ 1])


def test_a_block_that_is_no_multiple_of_32(sched: str) -> None:
    result = run("vote.sync.ballot.b32 %d, 1, -1;".replace("1,", "%p0,"), [], "u4", sched, 40)
    assert not result.any()
    code = "setp.ge.u32 %p0, %r30, 0; vote.sync.ballot.b32 %d, %p0, -1;"
    result = run(code, [], "u4", sched, 40)
    assert (result[:32] == 0xFFFFFFFF).all()
    assert (result[32:40] == 0xFF).all()


def test_active_lanes(sched: str) -> None:
    code = """mov.b32 %d, 0; and.b32 %r0, %r30, 3; setp.ne.u32 %p0, %r0, 0; @%p0 bra out;
              activemask.b32 %d; out:"""
    result = run(code, [], "u4", sched)
    assert np.array_equal(result, np.where(LANES % 4 == 0, 0x11111111, 0))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        # the mask of a __shfl_sync written for half a warp, used by the whole
        ("shfl.sync.bfly.b32 %d, %r30, 1, 31, 0xFFFF;", "does not name the calling thread"),
        # a lane that never comes
        (
            """and.b32 %r0, %r30, 31; setp.eq.u32 %p0, %r0, 7; mov.b32 %d, 0; @%p0 bra out;
               shfl.sync.bfly.b32 %d, %r30, 1, 31, -1; out: bar.sync 0;""",
            "deadlock",
        ),
        # reading a lane that the mask leaves out
        (
            """and.b32 %r0, %r30, 31; setp.ge.u32 %p0, %r0, 16; mov.b32 %d, 0; @%p0 bra out;
               shfl.sync.down.b32 %d, %r30, 8, 31, 0xFFFF; out:""",
            "lane that takes no part",
        ),
    ],
)
def test_wrong_masks_are_seen(code: str, message: str, sched: str) -> None:
    with pytest.raises(SimError, match=message):
        run(code, [], "u4", sched)


def test_inputs_are_not_changed_by_a_shuffle(sched: str) -> None:
    before = VALUES.copy()
    run("shfl.sync.bfly.b32 %d, %a, 1, 31, -1; add.u32 %a, %d, 1;", [VALUES], "u4", sched)
    assert np.array_equal(VALUES, before)
    assert np.array_equal(elementwise("mov.b32 %d, %a;", [VALUES], "u4"), VALUES)
