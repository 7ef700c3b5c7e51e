"""The pure half of watching a folder: every version of every file once, whatever writers do."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edge.cameras.watch import FolderWatch, Listing, Version, sort_key

SETTLE, PATIENCE = 0.2, 2.0


def take(watch: FolderWatch, listing: Listing, now: float) -> list[str]:
    ready = watch.observe(listing, now)
    for name, version in ready:
        watch.delivered(name, version)
    return [name for name, _ in ready]


def test_a_file_is_delivered_when_it_has_not_moved_and_only_once() -> None:
    watch = FolderWatch(SETTLE, PATIENCE)
    listing = {"a.png": (1, 10, 1)}
    assert take(watch, listing, 0.0) == []
    assert take(watch, listing, 0.1) == []
    assert take(watch, listing, 0.2) == ["a.png"]
    assert take(watch, listing, 9.0) == []


def test_a_growing_file_waits_until_it_stops() -> None:
    watch = FolderWatch(SETTLE, PATIENCE)
    for step in range(10):
        assert take(watch, {"a.png": (step, 100 * step + 1, 1)}, 0.15 * step) == []
    last = {"a.png": (9, 901, 1)}
    assert take(watch, last, 1.6) == ["a.png"]


def test_a_new_version_is_delivered_again() -> None:
    watch = FolderWatch(SETTLE, PATIENCE)
    versions: list[Version] = [(1, 10, 1), (2, 10, 1), (2, 11, 1), (2, 11, 7)]  # mtime, size, inode
    for k, version in enumerate(versions):
        assert take(watch, {"a.png": version}, 10.0 * k) == []
        assert take(watch, {"a.png": version}, 10.0 * k + 1) == ["a.png"]


def test_an_empty_file_gets_time_and_is_then_delivered() -> None:
    watch = FolderWatch(SETTLE, PATIENCE)
    assert take(watch, {"a.png": (1, 0, 1)}, 0.0) == []
    assert take(watch, {"a.png": (1, 0, 1)}, 1.9) == []
    assert take(watch, {"a.png": (1, 0, 1)}, 2.0) == ["a.png"]


def test_a_file_that_does_not_decode_gets_time_once() -> None:
    watch = FolderWatch(SETTLE, PATIENCE)
    listing = {"a.png": (1, 10, 1)}
    watch.observe(listing, 0.0)
    assert watch.observe(listing, 0.3) == [("a.png", (1, 10, 1))]
    assert watch.give_time("a.png", 0.3)
    assert watch.observe(listing, 1.0) == []
    assert watch.observe(listing, 2.0) == [("a.png", (1, 10, 1))]
    assert not watch.give_time("a.png", 2.0)


def test_what_was_removed_is_forgotten() -> None:
    watch = FolderWatch(SETTLE, PATIENCE)
    listing: Listing = {f"{i}.png": (i, 10, i) for i in range(1000)}
    take(watch, listing, 0.0)
    assert len(take(watch, listing, 1.0)) == 1000
    assert watch.remembered == 1000
    assert take(watch, {"5.png": (5, 10, 5)}, 2.0) == []
    assert watch.remembered == 1


def test_order() -> None:
    items: list[tuple[str, Version]] = [("b", (1, 0, 0)), ("a", (2, 0, 0)), ("c", (1, 0, 0))]
    assert [n for n, _ in sorted(items, key=sort_key("name"))] == ["a", "b", "c"]
    assert [n for n, _ in sorted(items, key=sort_key("mtime"))] == ["b", "c", "a"]


class Writers(RuleBasedStateMachine):
    """Any sequence of writing, rewriting, removing and scanning: no version twice, none forgotten."""

    @initialize()
    def begin(self) -> None:
        self.watch = FolderWatch(SETTLE, PATIENCE)
        self.files: Listing = {}
        self.now = 0.0
        self.stamp = 0
        self.got: list[tuple[str, Version]] = []

    @rule(name=st.sampled_from("abc"), size=st.integers(0, 3))
    def write(self, name: str, size: int) -> None:
        self.stamp += 1
        self.files[name] = (self.stamp, size, 1)

    @rule(name=st.sampled_from("abc"))
    def remove(self, name: str) -> None:
        self.files.pop(name, None)

    @rule(seconds=st.floats(0, 3))
    def look(self, seconds: float) -> None:
        self.now += seconds
        for name, version in self.watch.observe(dict(self.files), self.now):
            assert self.files[name] == version
            self.watch.delivered(name, version)
            self.got.append((name, version))

    @rule()
    def settle(self) -> None:
        for _ in range(2):
            self.look(PATIENCE + 0.1)
        assert all(item in self.got for item in self.files.items())

    @invariant()
    def no_version_twice(self) -> None:
        assert len(self.got) == len(set(self.got))
        assert self.watch.remembered <= 3


TestWriters = Writers.TestCase
TestWriters.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
