"""The supervisor's side of the slot pools: makes them, says who gets which, retires what no frame uses any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

from edge.supervisor.plan import PoolPlan
from edge.wire.pool import SlotPool

# Which core stage maps which pool; frame pools go to both of the last column's readers.
ROLES_OF = {
    "preprocess": ("input",),
    "backbone": ("input", "features"),
    "head": ("features", "map"),
    "alert": ("map",),
}
FRAME_READERS = ("preprocess", "alert")


class Pools:
    """All pools of a line. Ids are never used twice within a supervisor's life."""

    def __init__(self, is_live: Callable[[int], bool]) -> None:
        self._is_live = is_live
        self._ids = count(1)
        self.core: dict[str, SlotPool] = {}
        self.frames: dict[str, SlotPool] = {}  # capture stage -> its current pool
        self._retiring: list[SlotPool] = []

    def make_core(self, plan: PoolPlan) -> None:
        """The pools between the core stages; earlier ones are retired. Raises ResourceError."""
        sizes = {"input": plan.input_bytes, "features": plan.feature_bytes, "map": plan.map_bytes}
        made: dict[str, SlotPool] = {}
        try:
            for role, size in sizes.items():
                made[role] = SlotPool.create(next(self._ids), plan.slots, size, role)
        except BaseException:
            for pool in made.values():
                pool.close()
            raise
        self._retiring += self.core.values()
        self.core = made

    def make_frames(self, capture: str, slots: int, height: int, width: int) -> SlotPool:
        """A new frame pool for a capture stage; its earlier one is retired. Raises ResourceError."""
        pool = SlotPool.create(next(self._ids), slots, height * width * 3, capture)
        self.drop_frames(capture)
        self.frames[capture] = pool
        return pool

    def drop_frames(self, capture: str) -> None:
        """The capture stage is gone: its pool goes when the last of its frames is closed."""
        old = self.frames.pop(capture, None)
        if old is not None:
            self._retiring.append(old)

    def for_stage(self, stage: str) -> Iterator[tuple[str, SlotPool]]:
        """(role, pool) of everything that a core stage must map."""
        for role in ROLES_OF.get(stage, ()):
            yield role, self.core[role]
        if stage in FRAME_READERS:
            for pool in self.frames.values():
                yield "frame", pool

    def retire(self) -> list[int]:
        """Close pools that no open frame uses any more; returns their ids, for the stages to unmap."""
        gone = [pool for pool in self._retiring if pool.stats(self._is_live).in_use == 0]
        for pool in gone:
            self._retiring.remove(pool)
            pool.close()
        return [pool.id for pool in gone]

    def occupancy(self) -> dict[str, tuple[int, int]]:
        """(in use, slots) by role or capture stage."""
        named = {**self.core, **self.frames}
        stats = {name: pool.stats(self._is_live) for name, pool in named.items()}
        return {name: (stat.in_use, stat.slots) for name, stat in stats.items()}

    def close(self) -> None:
        """Let go of every pool."""
        for pool in (*self.core.values(), *self.frames.values(), *self._retiring):
            pool.close()
        self.core, self.frames, self._retiring = {}, {}, []
