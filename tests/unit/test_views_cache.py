"""The cache of state rows: its bounds are exact, and no reader is ever given a row that was not the visible one."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import CorruptionError, OutOfSpace
from holdfast.views import flush as flush_module
from holdfast.views.api import CachePolicy, FrameLayers, Layer, Rows, ViewOptions
from holdfast.views.cache import ENTRY_COST_BYTES, RowCache, Tally
from holdfast.views.cached import state_getter
from holdfast.views.overlay import MISSING, Missing
from holdfast.views.tables import CANONICAL, STATE
from holdfast.views.views import Views
from tests.unit.views_support import RecordingEngine, Since, ToyBlock, ToyChain, open_views, publish, run_together

POLICIES: list[CachePolicy] = ["lru", "lfu", "fifo"]
A, B, C, D = (STATE.prefix + name for name in (b"a", b"b", b"c", b"d"))
ONE = ENTRY_COST_BYTES + 3 + 7
"""Cost of an entry with such a key and a value of seven bytes."""


def filled(policy: CachePolicy, budget: int, *keys: bytes) -> RowCache:
    """A cache with an entry of seven bytes for each key."""
    cache = RowCache(budget, policy)
    for key in keys:
        cache.fill(key, b"1234567", cache.epoch)
    return cache


def held(cache: RowCache, *keys: bytes) -> list[bool]:
    """Which keys have an entry; counts as a read."""
    return [cache.get(key, MISSING) is not MISSING for key in keys]


# -- bounds and order ----------------------------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.just("fill"), st.integers(0, 9), st.one_of(st.none(), st.integers(0, 500))),
        st.tuples(st.just("get"), st.integers(0, 9), st.none()),
        st.tuples(st.just("drop"), st.integers(0, 9), st.none()),
        st.tuples(st.just("flush"), st.integers(0, 9), st.none()),
    ),
    max_size=60,
)


@pytest.mark.parametrize("policy", POLICIES)
@given(budget=st.integers(0, 4000), steps=steps)
def test_the_cost_is_exact_and_within_the_budget(
    policy: CachePolicy, budget: int, steps: list[tuple[str, int, int | None]]
) -> None:
    cache = RowCache(budget, policy)
    put: dict[bytes, bytes | None] = {}
    for name, number, size in steps:
        key = STATE.prefix + bytes(number + 1)
        if name == "fill":
            value = None if size is None else bytes(size)
            known = key in put and cache._entries.contains(key)
            cache.fill(key, value, cache.epoch)
            if not known:
                put[key] = value
            small = len(key) + (size or 0) + ENTRY_COST_BYTES <= budget // 8
            assert known or cache._entries.contains(key) == small
        elif name == "get":
            value_now = cache.get(key, MISSING)
            assert value_now is MISSING or value_now == put[key]
        elif name == "drop":
            cache.drop([key, key])
            assert cache.get(key, MISSING) is MISSING
        else:
            cache.close()
            cache.fill(key, b"", cache.epoch)
            cache.drop([key])
            cache.open()
            assert not cache._entries.contains(key)
        stats = cache.stats
        entries = dict(cache._entries.items())
        assert stats.bytes == sum(len(k) + len(v or b"") + ENTRY_COST_BYTES for k, v in entries.items())
        assert stats.bytes <= budget
        assert stats.entries == len(entries)


def test_the_policy_says_who_leaves() -> None:
    first: dict[CachePolicy, bytes] = {"lru": STATE.prefix + b"1", "fifo": STATE.prefix + b"0", "lfu": b""}
    keys = [STATE.prefix + b"%d" % number for number in range(8)]
    for policy in POLICIES:
        cache = filled(policy, 8 * ONE, *keys)
        assert cache.stats.evictions == 0
        cache.get(keys[0], MISSING)
        if policy == "lfu":
            for key in (*keys[1:], *keys[:5], *keys[6:]):
                cache.get(key, MISSING)
            first["lfu"] = keys[5]
        cache.fill(A, b"1234567", cache.epoch)
        assert cache.stats.evictions == 1
        left = [key for key in keys if not cache._entries.contains(key)]
        assert left == [first[policy]], policy
        assert cache._entries.contains(A)


def test_a_large_entry_stays_out() -> None:
    cache = RowCache(8 * ONE, "lru")
    cache.fill(A, b"12345678", cache.epoch)
    assert held(cache, A) == [False]
    cache.fill(A, b"1234567", cache.epoch)
    assert held(cache, A) == [True]


def test_absent_rows_are_entries_too() -> None:
    cache = RowCache(10_000, "lru")
    cache.fill(A, None, cache.epoch)
    assert cache.get(A, MISSING) is None
    assert cache.stats.bytes == 3 + ENTRY_COST_BYTES


@pytest.mark.parametrize("when", ["before", "during", "across the end"])
def test_what_was_read_before_or_during_a_flush_stays_out(when: str) -> None:
    cache = RowCache(10_000, "lru")
    epoch = cache.epoch
    cache.close()
    if when == "across the end":
        epoch = cache.epoch
    cache.fill(A, b"1", epoch if when != "during" else cache.epoch)
    assert held(cache, A) == [False]
    cache.open()
    cache.fill(A, b"1", epoch)
    assert held(cache, A) == [False]
    cache.fill(A, b"1", cache.epoch)
    assert held(cache, A) == [True]


def test_a_tally_counts_in_threads_and_not_its_looks() -> None:
    tally = Tally()
    threads = [threading.Thread(target=lambda: [tally.add() for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        assert 0 <= tally.value() <= 4000
    for thread in threads:
        thread.join()
    assert tally.value() == tally.value() == 4000


# -- in the views --------------------------------------------------------------------------------------------------


@pytest.fixture
def engine() -> RecordingEngine:
    return RecordingEngine()


def grown(engine: RecordingEngine, **options: float) -> tuple[Views, ToyChain]:
    """Two frames in the engine, a third published."""
    chain = ToyChain()
    views = open_views(engine, Since(), chain, cache_bytes=100_000, **options)
    blocks: list[Rows] = [{A: b"1", B: b"1"}, {B: b"2"}, {A: None, B: b"3", D: b"3"}]
    for rows in blocks:
        chain.append(0, [chain.block(chain.now.chain[-1] if chain.now.chain else None, rows, {})])
    publish(views, chain, 1, 3)
    views.set_visible(2)
    views.flush()
    return views, chain


def test_a_second_read_does_not_ask_the_engine(engine: RecordingEngine) -> None:
    views, _ = grown(engine)
    asked: list[int] = []
    engine.on_get = lambda: asked.append(1)
    assert [views.get_state(key) for key in (A, B, C, A, B, C)] == [b"1", b"2", None] * 2
    assert len(asked) == 3
    stats = views.cache_stats
    assert stats is not None
    assert (stats.hits, stats.misses, stats.entries, stats.hit_rate) == (3, 3, 3, 0.5)
    views.set_visible(3)
    assert [views.get_state(key) for key in (A, B, C, D)] == [None, b"3", None, b"3"]  # three from the overlay
    stats = views.cache_stats
    assert stats is not None
    assert (stats.hits, stats.misses) == (4, 3)
    views.flush()
    stats = views.cache_stats
    assert stats is not None
    assert stats.entries == 1  # the flush dropped what it wrote
    assert [views.get_state(key) for key in (A, B, C, D)] == [None, b"3", None, b"3"]


def test_without_figures_nothing_is_counted(engine: RecordingEngine) -> None:
    views, _ = grown(engine, cache_stats=False)
    assert [views.get_state(key) for key in (A, A)] == [b"1", b"1"]
    stats = views.cache_stats
    assert stats is not None
    assert (stats.hits, stats.misses, stats.entries, stats.hit_rate) == (0, 0, 1, 0.0)


def test_without_a_cache_every_read_is_the_engines() -> None:
    engine = RecordingEngine()
    chain = ToyChain()
    chain.append(0, [chain.block(None, {A: b"1"}, {})])
    views = open_views(engine, Since(), chain)
    publish(views, chain, 1, 1)
    assert views.get_state(A) is None
    views.set_visible(1)
    assert views.get_state(A) == b"1"
    views.flush()
    assert [views.get_state(key) for key in (A, B)] == [b"1", None]
    assert views.cache_stats is None


def test_a_bad_row_is_corruption_and_not_cached(engine: RecordingEngine) -> None:
    views, _ = grown(engine)
    engine._rows.values[A] = b"\x00" + engine._rows.values[A]
    for _ in range(2):
        with pytest.raises(CorruptionError):
            views.get_state(A)


def test_after_a_failed_flush_reads_are_right(engine: RecordingEngine) -> None:
    views, chain = grown(engine)
    assert [views.get_state(key) for key in (A, B, C)] == [b"1", b"2", None]
    views.set_visible(3)

    def fail() -> None:
        if B in engine.batches[-1].rows:
            raise OutOfSpace("full")

    engine.meanwhile = fail
    with pytest.raises(OutOfSpace):
        views.flush()
    assert [views.get_state(key) for key in (A, B, C, D)] == [chain.now.rows.get(key) for key in (A, B, C, D)]


# -- the hunt for a stale row --------------------------------------------------------------------------------------

KEYS = (A, B, C, CANONICAL.prefix + b"x")


class StaleRow(BaseException):
    """A reader was given a row that was not the visible one at any moment of its call."""


class Reader(threading.Thread):
    """Reads one row, and stops at the looks of ``plan`` (1: the overlay was asked, 2: the engine was) until released.

    Only one thread runs at a time: ``go_on`` returns when the reader has stopped again, or ended.
    """

    def __init__(self, hunt: Hunt, key: bytes, plan: set[int]) -> None:
        super().__init__(daemon=True)
        self.hunt, self.key, self.plan = hunt, key, plan
        self.begun = hunt.views.stats.visible_seq
        self.value: bytes | None = None
        self.resume, self.stopped = threading.Semaphore(0), threading.Semaphore(0)
        self.done = False

    def run(self) -> None:
        self.resume.acquire()
        self.value = self.hunt.get(self.key)
        self.done = True
        self.stopped.release()

    def stop_at(self, look: int) -> None:
        if look in self.plan:
            self.stopped.release()
            self.resume.acquire()

    def go_on(self) -> None:
        self.resume.release()
        self.stopped.acquire()
        if self.done:
            self.join()
            self.hunt.check(self.key, self.value, self.begun)
            self.hunt.readers.remove(self)


class Hunt:
    """Random frames, reorgs and flushes, and readers that stop between their looks while all that goes on."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.chain = ToyChain()
        self.engine = RecordingEngine()
        budget, policy = self.rng.choice([1_500, 100_000]), self.rng.choice(POLICIES)
        self.views = Views.open(
            self.engine,
            options=ViewOptions(cache_bytes=budget, cache_policy=policy),
            frame_digest=lambda _: bytes(32),
        )
        self.readers: list[Reader] = []
        self.reads = 0
        cache = self.views._cache
        assert cache is not None
        cached, drop = cache.get, cache.drop

        def stopped(key: bytes, default: Missing) -> bytes | Missing | None:
            self.stop_at(1)
            return cached(key, default)

        def dropped(keys: Iterable[bytes]) -> None:
            drop(keys)
            self.let_readers_go_on()

        cache.get = stopped
        cache.drop = dropped  # type: ignore[method-assign]
        self.get = state_getter(self.engine, self.views._overlay, cache, count=False)
        self.engine.on_get = lambda: self.stop_at(2)
        self.engine.meanwhile = self.let_readers_go_on  # between two batches of a flush

    def stop_at(self, look: int) -> None:
        thread = threading.current_thread()
        if isinstance(thread, Reader):
            thread.stop_at(look)

    def check(self, key: bytes, value: bytes | None, begun: int) -> None:
        seqs = range(begun, self.views.stats.visible_seq + 1)
        if value not in {self.chain.moments[seq].rows.get(key) for seq in seqs}:
            raise StaleRow(key, value, seqs)
        self.reads += 1

    def let_readers_go_on(self, chance: float = 0.4) -> None:
        """Some that wait take a step; new ones begin."""
        rng = self.rng
        for reader in list(self.readers):
            if rng.random() < chance:
                reader.go_on()
        while rng.random() < 0.7 and len(self.readers) < 6:
            reader = Reader(self, rng.choice(KEYS[:3]), rng.choice([set(), {1}, {2}, {1, 2}, {1, 2}]))
            self.readers.append(reader)
            reader.start()
            reader.go_on()

    def commit(self) -> None:
        now, rng = self.chain.now.chain, self.rng
        able = len([block for block in now if block.height > self.chain.now.floor])
        removed = min(able, rng.randint(1, 3)) if rng.random() < 0.3 else 0
        parent: ToyBlock | None = now[len(now) - removed - 1] if len(now) > removed else None
        number = self.chain.seq
        rows: Rows = {key: rng.choice([None, b"%d" % number]) for key in KEYS if rng.random() < 0.5}
        self.chain.append(removed, [self.chain.block(parent, rows, {})])
        publish(self.views, self.chain, self.chain.seq, self.chain.seq)
        self.views.set_visible(self.chain.seq)

    def run(self, steps: int) -> int:
        for _ in range(steps):
            if self.rng.random() < 0.6:
                self.commit()
            else:
                self.views.flush()
            self.let_readers_go_on(0.15)
        while self.readers:
            self.readers[0].go_on()
        for key in KEYS[:3]:
            self.check(key, self.get(key), self.chain.seq)
        return self.reads


def hunt_all(first: int, seeds: int) -> int:
    """Many hunts; how many reads they compared."""
    return sum(Hunt(seed).run(60) for seed in range(first, first + seeds))


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flush_module, "_SLICE_ROWS", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("small_slices")
def test_no_reader_is_given_a_stale_row() -> None:
    assert hunt_all(0, 15) > 2_000


def put(self: RowCache, key: bytes, value: bytes | None) -> None:
    """An entry, whatever a flush does."""
    if not self._entries.contains(key):
        self._entries.insert(key, value)


def whenever(self: RowCache, key: bytes, value: bytes | None, epoch: int) -> None:
    """Fills are never refused."""
    put(self, key, value)


def in_a_flush(self: RowCache, key: bytes, value: bytes | None, epoch: int) -> None:
    """A fill that began and ends within one flush is not refused."""
    if epoch == self.epoch:
        put(self, key, value)


def after_a_flush(self: RowCache, key: bytes, value: bytes | None, epoch: int) -> None:
    """Only what a flush does while the entry is put in counts, not what it did since the row was read."""
    if not self.epoch & 1:
        put(self, key, value)


def across_the_end(self: RowCache, key: bytes, value: bytes | None, epoch: int) -> None:
    """The end of a flush is not noticed."""
    if not self.epoch & 1 and epoch >= self.epoch - 1:
        put(self, key, value)


def nothing_dropped(self: RowCache, keys: object) -> None:
    """The flush leaves its keys in the cache."""


@pytest.mark.slow
@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize(
    ("bug", "first"),
    [(whenever, 0), (in_a_flush, 31), (after_a_flush, 15), (across_the_end, 208), (nothing_dropped, 0)],
)
def test_the_hunt_finds_planted_bugs(bug: Callable[..., None], first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """``first`` is near a hunt that finds it; some take hundreds."""
    monkeypatch.setattr(RowCache, "drop" if bug is nothing_dropped else "fill", bug)
    with pytest.raises(StaleRow):
        hunt_all(first, 300)


# -- threads -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_readers_among_commits_and_background_flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every frame writes its number into all keys: a reader never sees a number lower than one it knows visible."""
    monkeypatch.setattr(flush_module, "_SLICE_ROWS", 7)
    names = [STATE.prefix + b"%03d" % number for number in range(40)]
    views = open_views(
        RecordingEngine(), overlay_rows_max=400, flush_interval_seconds=0.01, cache_bytes=25 * (ENTRY_COST_BYTES + 9)
    )
    visible = [0]
    reads = Tally()

    seqs = count(1)

    def write() -> None:
        views.back_pressure()
        seq = next(seqs)
        some = names if seq % 3 else names[::2]
        rows: Rows = dict.fromkeys(names if seq < 2 else some, b"%d" % seq)
        views.publish(FrameLayers(seq, [Layer({}, rows, (seq, seq.to_bytes(32, "big")))], bytes, max(0, seq - 5)))
        views.set_visible(seq)
        visible[0] = seq
        if seq % 4 == 0:
            time.sleep(0.001)

    def read() -> None:
        for at in range(0, len(names), 2):
            least = visible[0]
            value = views.get_state(names[at])  # written by every frame
            assert (int(value) if value is not None else 0) >= least
            reads.add()

    views.start()
    run_together(2.0, (write, *[read] * 4))
    views.close(flush=False)
    stats = views.cache_stats
    assert stats is not None
    assert views.stats.flushes > 5
    assert reads.value() > 1000
    assert stats.bytes <= stats.budget_bytes
