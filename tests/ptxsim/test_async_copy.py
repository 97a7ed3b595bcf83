"""Asynchronous copies of the PTX simulator, and the waits without which they are an error."""

from __future__ import annotations

import numpy as np
import pytest

from ptxsim import SimError
from ptxsim.testing import THREADS, buffer, launch, numbers


def test_thread_copies() -> None:
    source, target = numbers(THREADS * 4), np.zeros(THREADS * 4, "f4")
    body = """.shared .align 16 .b8 s[2048]; mov.u32 %r0, s; mad.lo.u32 %r1, %r29, 16, %r0;
        mad.wide.u32 %l0, %r29, 16, %l16; mad.wide.u32 %l1, %r29, 16, %l17;
        setp.lt.u32 %p0, %r29, 100; selp.b32 %r2, 16, 8, %p0;
        cp.async.cg.shared.global [%r1], [%l0], 16, %r2; cp.async.commit_group;
        cp.async.wait_group 0; xor.b32 %r3, %r29, 1; mad.lo.u32 %r4, %r3, 16, %r0; bar.sync 0;
        ld.shared.v4.f32 {%r5, %r6, %r7, %r8}, [%r4];
        st.global.v4.f32 [%l1], {%r5, %r6, %r7, %r8};"""
    report = launch(body, [source, target])
    rows = source.reshape(-1, 4).copy()
    rows[100:, 2:] = 0  # filled up with zeros
    assert np.array_equal(target.reshape(-1, 4), rows[np.arange(THREADS) ^ 1])
    assert report.read_bytes == source.nbytes


BULK = """.shared .align 128 .b8 s[2048]; .shared .align 8 .b8 m[8];
    setp.eq.u32 %p0, %r29, 0; mov.u32 %r0, s; mov.u32 %r1, m;
    @%p0 mbarrier.init.shared.b64 [%r1], 1; @%p0 fence.proxy.async; bar.sync 0;
    @!%p0 bra wait; mbarrier.arrive.expect_tx.shared.b64 %l5, [%r1], 2048;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r0], [%l16], 2048, [%r1];
    wait: {wait}
    mad.lo.u32 %r3, %r29, 16, %r0; ld.shared.v4.b32 {{%r5, %r6, %r7, %r8}}, [%r3]; bar.sync 0;
    add.u32 %r5, %r5, 1; st.shared.b32 [%r3], %r5; fence.proxy.async; bar.sync 0;
    @!%p0 bra done; cp.async.bulk.global.shared::cta.bulk_group [%l17], [%r0], 2048;
    cp.async.bulk.commit_group; {last}
    done:"""
WAIT = "mbarrier.try_wait.parity.shared.b64 %p1, [%r1], 0; @!%p1 bra wait;"
LAST = "cp.async.bulk.wait_group.read 0;"


@pytest.mark.parametrize("sched", ["minpc", "random"])
def test_bulk_copies_and_an_mbarrier(sched: str) -> None:
    source, target = numbers(THREADS * 4, "u4"), buffer(THREADS * 4, "u4")
    report = launch(BULK.format(wait=WAIT, last=LAST), [source, target], sched=sched)
    assert np.array_equal(
        target.reshape(-1, 4), source.reshape(-1, 4) + np.array([1, 0, 0, 0], "u4")
    )
    assert (report.read_bytes, report.written_bytes) == (2048, 2048)
    assert report.read_efficiency == report.write_efficiency == 1


@pytest.mark.parametrize("sched", ["minpc", "random"])
@pytest.mark.parametrize(
    ("wait", "last", "message"),
    [
        ("", LAST, "asynchronous copy|race|uninitialised"),
        (WAIT, "", "ended while a bulk copy"),
        (WAIT.replace(", 0;", ", 1;"), LAST, "asynchronous copy|race|uninitialised|deadlock"),
    ],
)
def test_missing_waits_are_seen(wait: str, last: str, message: str, sched: str) -> None:
    source, target = numbers(THREADS * 4, "u4"), buffer(THREADS * 4, "u4")
    with pytest.raises(SimError, match=message):
        launch(BULK.format(wait=wait, last=last), [source, target], sched=sched)


def test_an_mbarrier_that_gets_too_few_bytes_is_a_deadlock() -> None:
    source, target = numbers(THREADS * 4, "u4"), buffer(THREADS * 4, "u4")
    body = BULK.format(wait=WAIT, last=LAST).replace("%l5, [%r1], 2048", "%l5, [%r1], 4096")
    with pytest.raises(SimError, match="deadlock: 128 threads wait at `mbarrier"):
        launch(body, [source, target])
