"""Thread-block clusters in the PTX simulator: distributed shared memory and its barrier."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from ptxsim import Report, Sim, SimError
from ptxsim.testing import buffer, kernel

SYNC = "barrier.cluster.arrive; barrier.cluster.wait;"
SHARED = ".shared .align 4 .b8 s[256]; mov.u32 %r0, s; mad.lo.u32 %r1, %r29, 4, %r0;"

# Each block publishes its thread numbers times its rank + 1; each sums them over the cluster.
SUM = """
    mov.u32 %r2, %cluster_ctarank; mov.u32 %r3, %cluster_nctarank; add.u32 %r4, %r2, 1;
    mul.lo.u32 %r5, %r4, %r29; st.shared.b32 [%r1], %r5; {first}
    mov.u32 %r6, 0; mov.u32 %r7, 0;
    next: mapa.shared::cluster.u32 %r8, %r1, %r6; ld.shared::cluster.b32 %r9, [%r8];
    add.u32 %r7, %r7, %r9; add.u32 %r6, %r6, 1; setp.lt.u32 %p0, %r6, %r3; @%p0 bra next;
    mad.wide.u32 %l0, %r30, 4, %l16; st.global.b32 [%l0], %r7; {last}"""


def launch(
    body: str, out: Any, cluster: Any, *, sched: str, grid: Any = None, seed: int = 0
) -> Report:
    sim = Sim(kernel(SHARED + body, 1), sched=sched, seed=seed)
    return sim.launch("k", grid or out.size // 64, 64, [out], cluster=cluster)


@pytest.mark.parametrize("sched", ["minpc", "random"])
@pytest.mark.parametrize("size", [1, 2, 8, 16])
def test_sum_over_the_cluster(size: int, sched: str) -> None:
    out = buffer(64 * 2 * size, "u4")
    report = launch(SUM.format(first=SYNC, last=SYNC), out, size, sched=sched)
    total = np.arange(64) * sum(range(1, size + 1))
    assert np.array_equal(out, np.tile(total, 2 * size))
    assert not report.warnings
    assert report.cluster == (size, 1, 1)


def test_cluster_coordinates() -> None:
    """A 4 x 6 grid in clusters of 2 x 3."""
    out = buffer(24 * 64 * 4, "u4")
    body = """
        mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ctaid.y; mad.lo.u32 %r4, %r3, 4, %r2;
        mad.lo.u32 %r5, %r4, 64, %r29; mad.wide.u32 %l0, %r5, 16, %l16;
        mov.u32 %r6, %cluster_ctarank; mov.u32 %r7, %cluster_ctaid.y; mov.u32 %r8, %clusterid.x;
        mov.u32 %r9, %nclusterid.y; st.global.v4.b32 [%l0], {%r6, %r7, %r8, %r9};"""
    launch(body, out, (2, 3), sched="minpc", grid=(4, 6))
    rows = out.reshape(6, 4, 64, 4)[:, :, 0]
    y, x = np.meshgrid(np.arange(6), np.arange(4), indexing="ij")
    expected = [y % 3 * 2 + x % 2, y % 3, x // 2, np.full((6, 4), 2)]
    assert np.array_equal(rows, np.stack(expected, axis=-1))


def test_the_attribute_of_the_kernel_counts() -> None:
    out = buffer(64 * 8, "u4")
    text = kernel(SHARED + SUM.format(first=SYNC, last=SYNC), 1)
    text = text.replace("p0)", "p0)\n.explicitcluster\n.reqnctapercluster 4, 1, 1\n")
    report = Sim(text).launch("k", 8, 64, [out])
    assert report.cluster == (4, 1, 1)
    assert np.array_equal(out[:64], np.arange(64) * 10)


@pytest.mark.parametrize("sched", ["minpc", "random"])
def test_missing_first_sync(sched: str) -> None:
    with pytest.raises(SimError, match=r"race|uninitialised"):
        launch(SUM.format(first="", last=SYNC), buffer(512, "u4"), 8, sched=sched)


@pytest.mark.parametrize("sched", ["minpc", "random"])
def test_missing_last_sync(sched: str) -> None:
    """A block ends while others read its shared memory: seen whoever is first."""
    body = SUM.format(first=SYNC, last="")
    seen = set()
    for seed in range(8):
        with pytest.raises(SimError, match=r"has exited|may end before") as error:
            launch(body, buffer(512, "u4"), 8, sched=sched, seed=seed)
        seen.add("has exited" in str(error.value))
    assert len(seen) == (1 if sched == "minpc" else 2)


@pytest.mark.parametrize("sched", ["minpc", "random"])
def test_stores_to_another_block(sched: str) -> None:
    body = """
        mov.u32 %r2, %cluster_ctarank; add.u32 %r3, %r2, 1; and.b32 %r3, %r3, 3;
        mapa.shared::cluster.u32 %r4, %r1, %r3; mad.lo.u32 %r5, %r2, 1000, %r29; {ready}
        st.shared::cluster.b32 [%r4], %r5; {sync} ld.shared.b32 %r6, [%r1];
        mad.wide.u32 %l0, %r30, 4, %l16; st.global.b32 [%l0], %r6; {end}"""
    out = buffer(256, "u4")
    launch(body.format(ready=SYNC, sync=SYNC, end=""), out, 4, sched=sched)
    rows = out.reshape(4, 64)
    assert np.array_equal(rows[:, 0], [3000, 0, 1000, 2000])
    with pytest.raises(
        SimError, match=r"race|uninitialised"
    ):  # a block's own barrier is too little
        launch(body.format(ready=SYNC, sync="bar.sync 0;", end=SYNC), out, 4, sched=sched)


def test_accesses_between_arrive_and_wait_are_not_ordered() -> None:
    body = """
        mov.u32 %r2, %cluster_ctarank; xor.b32 %r3, %r2, 1; mapa.shared::cluster.u32 %r4, %r1, %r3;
        {before} barrier.cluster.arrive; {between} barrier.cluster.wait;
        ld.shared::cluster.b32 %r6, [%r4]; mad.wide.u32 %l0, %r30, 4, %l16;
        st.global.b32 [%l0], %r6; barrier.cluster.arrive; barrier.cluster.wait;"""
    store, out = "st.shared.b32 [%r1], %r29;", buffer(128, "u4")
    launch(body.format(before=store, between=""), out, 2, sched="minpc")
    assert np.array_equal(out[:64], np.arange(64))
    with pytest.raises(SimError, match="race"):
        launch(body.format(before="", between=store), out, 2, sched="minpc")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("barrier.cluster.wait;", "without arriving first"),
        ("barrier.cluster.arrive; barrier.cluster.arrive;", "second arrival"),
        (
            "mov.u32 %r2, 1; mapa.shared::cluster.u32 %r4, %r1, %r2; st.shared.b32 [%r4], 1;",
            "remote address",
        ),
        (
            "mov.u32 %r2, 2; mapa.shared::cluster.u32 %r4, %r1, %r2;"
            "st.shared::cluster.b32 [%r4], 1;",
            "out-of-bounds shared",
        ),
        ("setp.eq.u32 %p0, %r29, 5; @%p0 bra out; bar.sync 0; bar.sync 0; out: bar.sync 0;", None),
    ],
)
def test_misuse(body: str, message: str | None) -> None:
    out = buffer(128, "u4")
    if message:
        with pytest.raises(SimError, match=re.escape(message)):
            launch(body, out, 2, sched="minpc")
    else:
        assert any("different barrier" in w for w in launch(body, out, 2, sched="minpc").warnings)


@pytest.mark.parametrize("sched", ["minpc", "random"])
def test_multicast_and_remote_arrivals(sched: str) -> None:
    """Block 0 copies 256 bytes into all four blocks; each waits at its own mbarrier. Then every
    block tells block 0 through an mbarrier there that it is done."""
    source, out = buffer(64, "u4"), buffer(256, "u4")
    source[:] = np.arange(64) * 3
    body = """
        .shared .align 16 .b8 t[256]; .shared .align 8 .b8 m[16]; mov.u32 %r2, m; mov.u32 %r3, t;
        mov.u32 %r4, %cluster_ctarank; setp.eq.u32 %p0, %r29, 0; setp.eq.u32 %p1, %r4, 0;
        @%p0 mbarrier.init.shared.b64 [%r2], 1; @%p0 mbarrier.init.shared.b64 [%r2+8], 4;
        @%p0 mbarrier.arrive.expect_tx.shared.b64 _, [%r2], 256;
        barrier.cluster.arrive; barrier.cluster.wait;
        and.pred %p2, %p0, %p1; mov.b16 %h0, 15; ld.param.u64 %l1, [p1];
        @%p2 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster
             [%r3], [%l1], 256, [%r2], %h0;
        wait: mbarrier.try_wait.parity.shared.b64 %p3, [%r2], 0; @!%p3 bra wait;
        mad.lo.u32 %r5, %r29, 4, %r3; ld.shared.b32 %r6, [%r5]; add.u32 %r6, %r6, %r4;
        mad.wide.u32 %l0, %r30, 4, %l16; st.global.b32 [%l0], %r6;
        bar.sync 0; mov.u32 %r8, 0; add.u32 %r9, %r2, 8; mapa.shared::cluster.u32 %r7, %r9, %r8;
        @%p0 mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r7]; @!%p1 bra end;
        last: mbarrier.try_wait.parity.shared.b64 %p3, [%r2+8], 0; @!%p3 bra last; end:"""
    text = kernel(body, 2)
    Sim(text, sched=sched).launch("k", 4, 64, [out, source], cluster=4)
    assert np.array_equal(out.reshape(4, 64), source + np.arange(4, dtype="u4")[:, None])


@pytest.mark.parametrize("sched", ["minpc", "random"])
def test_a_store_that_arrives_later(sched: str) -> None:
    """st.async: the other block waits for 256 bytes."""
    out = buffer(128, "u4")
    body = """.shared .align 8 .b8 m[8]; mov.u32 %r2, m; setp.eq.u32 %p0, %r29, 0;
        @%p0 mbarrier.init.shared.b64 [%r2], 1;
        @%p0 mbarrier.arrive.expect_tx.shared.b64 _, [%r2], 256;
        barrier.cluster.arrive; barrier.cluster.wait; mov.u32 %r3, %cluster_ctarank;
        xor.b32 %r4, %r3, 1; mapa.shared::cluster.u32 %r5, %r1, %r4;
        mapa.shared::cluster.u32 %r6, %r2, %r4; getctarank.shared::cluster.u32 %r7, %r5;
        mad.lo.u32 %r7, %r7, 1000, %r29;
        st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r5], %r7, [%r6];
        wait: {wait}
        ld.shared.b32 %r8, [%r1]; mad.wide.u32 %l0, %r30, 4, %l16; st.global.b32 [%l0], %r8;"""
    wait = "mbarrier.try_wait.parity.shared.b64 %p1, [%r2], 0; @!%p1 bra wait;"
    launch(body.format(wait=wait), out, 2, sched=sched)
    assert np.array_equal(out.reshape(2, 64), np.arange(64) + np.array([[0], [1000]]))
    with pytest.raises(SimError, match=r"race|uninitialised|asynchronous|ended while"):
        launch(body.format(wait=""), out, 2, sched=sched)
