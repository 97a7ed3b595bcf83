"""Which lanes run next.

"minpc": the lanes at the lowest instruction, which lets diverged lanes meet again.
"random": a random run of neighbouring warps is favoured for a while (often until it waits or
ends), so that warps and blocks get far ahead of each other. Code that has been run so many times
(a long loop) is mostly run by all lanes that are there: they keep the distance they have.
"""

from __future__ import annotations

import collections

import numpy as np

from .lanes import Lanes, count_of, index_of, split_range, union

_FAMILIAR = 16
_FAIRNESS = 256  # every so many steps the highest pc goes first, lest a spinning loop starve it


class Scheduler:
    def __init__(self, rng: np.random.Generator, lanes: int, *, random: bool) -> None:
        self.rng, self.random = rng, random
        self.lane_count = lanes
        self.runnable: dict[int, Lanes] = {}
        self.steps = 0
        self.favoured = (0, 0)
        self.budget = 0
        self.visits: collections.Counter[int] = collections.Counter()

    @property
    def idle(self) -> bool:
        return not self.runnable

    def add(self, pc: int, lanes: Lanes) -> None:
        present = self.runnable.get(pc)
        self.runnable[pc] = lanes if present is None else union(present, lanes)

    def take(self) -> tuple[int, Lanes]:
        """The next lanes and where they are."""
        self.steps += 1
        if self.random:
            return self._take_random()
        pc = max(self.runnable) if self.steps % _FAIRNESS == 0 else min(self.runnable)
        return pc, self.runnable.pop(pc)

    def _take_random(self) -> tuple[int, Lanes]:
        while True:
            if self.budget <= 0:
                self._favour()
            self.budget -= 1
            for pc in sorted(self.runnable):
                chosen, rest = split_range(self.runnable[pc], *self.favoured)
                if chosen is None:
                    continue
                self.visits[pc] += 1
                if self.visits[pc] > _FAMILIAR and self.rng.random() < 0.8:
                    return pc, self.runnable.pop(pc)
                if rest is None:
                    del self.runnable[pc]
                else:
                    self.runnable[pc] = rest
                return pc, chosen
            self.budget = 0

    def _favour(self) -> None:
        """A few warps around a random runnable lane."""
        pcs = list(self.runnable)
        lanes = self.runnable[pcs[int(self.rng.integers(len(pcs)))]]
        seed = int(index_of(lanes)[int(self.rng.integers(count_of(lanes)))]) >> 5
        warps = self.lane_count >> 5
        length = int(np.exp(self.rng.uniform(0, np.log(warps + 1))))
        first = max(0, seed - int(self.rng.integers(length)))
        self.favoured = (first * 32, (max(first + length, seed + 1)) * 32)
        self.budget = int(np.exp(self.rng.uniform(0, 6)))
