"""The promises of an engine, as tests: subclass ``EngineContract`` and say how to make one.

Every test takes only a fresh directory, so that a suite can also be run without pytest: ``broken_engines`` does
that, to prove that the suite notices.

    class TestMine(EngineContract):
        factory = "my_package.engine:MyEngine"      # called as factory(path, create=True), here and in a child

        def make_engine(self, path):
            return MyEngine(path, create=True)
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ..engine.api import Batch, Engine, Page, Reader
from ..errors import ClosedError, HoldfastError, InvalidInputError, LimitExceeded

__all__ = ["BORDER_KEYS", "EngineContract", "contract_tests", "read_all"]

Row = tuple[bytes, bytes]
_Error = TypeVar("_Error", bound=BaseException)

BORDER_KEYS: tuple[bytes, ...] = (
    b"\x00", b"\x00\x00", b"\x00\x01", b"\x00\xff", b"\x01", b"\x01\x00", b"\x7f", b"\x7f\xff", b"\x80", b"\x80\x00",
    b"a", b"a\x00", b"a\xff", b"a\xff\xff", b"b", b"\xfe", b"\xfe\xff", b"\xff", b"\xff\x00", b"\xff\xff", b"\xff" * 9,
)  # fmt: skip


def read_all(
    reader: Reader, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False, limit: int = 1000
) -> list[Row]:
    """All rows of a scan, page by page; a page that breaks the paging rules is an ``AssertionError``."""
    rows: list[Row] = []
    while True:
        page: Page = reader.scan(start, stop, reverse=reverse, limit=limit)
        assert len(page.rows) <= limit, "a page holds more than it may"
        rows.extend(page.rows)
        if page.resume is None:
            return rows
        assert page.rows, "an empty page that is not the last one"
        if reverse:
            assert stop is None or page.resume < stop, "a reverse scan does not go on"
            stop = page.resume
        else:
            assert page.resume > start, "a scan does not go on"
            start = page.resume


def expect_error(kind: type[_Error], call: Callable[[], object]) -> _Error:
    """``call`` raises ``kind``; anything else is an ``AssertionError``."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def contract_tests(suite: type[EngineContract]) -> list[str]:
    """Names of the tests of a suite, sorted."""
    return sorted(name for name in dir(suite) if name.startswith("test_"))


# The child of the kill test: batch n writes under three prefixes; a line "n" on stdout says that n batches are synced.
_CHILD = """
import importlib, os, sys
from pathlib import Path
from holdfast.engine.api import Batch
module, _, name = sys.argv[1].partition(":")
engine = getattr(importlib.import_module(module), name)(Path(sys.argv[2]), create=True)
n = int(sys.argv[3])
while True:
    n += 1
    rows = {b"head": n.to_bytes(8, "big")}
    for i in range(30):
        for table in (b"a", b"m", b"z"):
            rows[table + (n * 30 + i).to_bytes(8, "big")] = n.to_bytes(8, "big") * 20
    engine.apply(Batch(rows, [(b"gone", b"gonf")]), sync=n % 7 == 0)
    if n % 7 == 0 or engine.capabilities.always_sync:
        os.write(1, b"%d\\n" % n)
"""


class EngineContract:
    """Tests of one engine. ``factory`` is for the test that kills a child; without it that test is skipped."""

    factory: ClassVar[str | None] = None

    def make_engine(self, path: Path) -> Engine:
        """The engine at ``path``, made if it is not there. A suite must define this."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to make its engine")

    @contextlib.contextmanager
    def opened(self, path: Path) -> Iterator[Engine]:
        """The engine of ``make_engine`` in a directory of its own, closed at the end."""
        engine = self.make_engine(path / "engine")
        try:
            yield engine
        finally:
            engine.close()

    # -- values and order ------------------------------------------------------------------------------------------

    def test_a_missing_key_is_none(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            assert engine.get(b"k") is None
            assert engine.get_many([b"k", b"l"]) == [None, None]
            assert engine.get_many([]) == []
            assert engine.floor(b"k") is None
            assert engine.scan() == Page([], None)
            assert engine.scan(reverse=True) == Page([], None)
            assert engine.get(b"x" * 600) is None

    def test_an_empty_value_is_not_a_miss(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            engine.apply(Batch({b"k": b""}), sync=True)
            assert engine.get(b"k") == b""
            assert engine.get_many([b"k", b"q"]) == [b"", None]
            assert engine.floor(b"kk") == (b"k", b"")
            assert engine.scan().rows == [(b"k", b"")]
            with engine.snapshot() as view:
                assert view.get(b"k") == b""
                assert view.get_many([b"k", b"j"]) == [b"", None]

    def test_order_is_bytewise_at_the_borders(self, tmp_path: Path) -> None:
        keys = list(BORDER_KEYS)
        random.Random(1).shuffle(keys)
        with self.opened(tmp_path) as engine:
            engine.apply(Batch({key: key for key in keys}), sync=True)
            ordered = sorted((key, key) for key in keys)
            assert read_all(engine) == ordered
            assert read_all(engine, reverse=True) == ordered[::-1]
            for start in (*BORDER_KEYS, b""):
                for stop in (*BORDER_KEYS, None):
                    wanted = [row for row in ordered if row[0] >= start and (stop is None or row[0] < stop)]
                    assert read_all(engine, start, stop) == wanted
                    assert read_all(engine, start, stop, reverse=True) == wanted[::-1]

    def test_bounds_longer_than_any_key(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            engine.apply(Batch({b"a": b"1", b"x" * 500: b"2", b"z": b"3"}), sync=True)
            far = b"x" * 2000
            assert read_all(engine, far) == [(b"z", b"3")]
            assert read_all(engine, b"", far) == [(b"a", b"1"), (b"x" * 500, b"2")]
            assert read_all(engine, b"", far, reverse=True) == [(b"x" * 500, b"2"), (b"a", b"1")]
            assert engine.floor(far) == (b"x" * 500, b"2")
            assert engine.floor(b"zz", far) == (b"z", b"3")
            assert engine.floor(b"y", far) is None
            engine.apply(Batch({}, [(b"b", far)]), sync=True)
            assert engine.get(b"x" * 500) is None

    def test_get_many_keeps_order_and_duplicates(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            engine.apply(Batch({b"%05d" % i: b"v%d" % i for i in range(3000)}), sync=False)
            asked = [b"%05d" % (i * 7919 % 4000) for i in range(2500)]
            asked += asked[:50]
            wanted = [b"v%d" % int(key) if int(key) < 3000 else None for key in asked]
            assert engine.get_many(asked) == wanted
            assert engine.get_many(tuple(asked)) == wanted
            with engine.snapshot() as view:
                assert view.get_many(asked) == wanted

    def test_values_of_every_size(self, tmp_path: Path) -> None:
        sizes = (0, 1, 15, 16, 255, 256, 4095, 4096, 4097, 65535, 65536, 1_000_001)
        with self.opened(tmp_path) as engine:
            engine.apply(Batch({b"%08d" % size: os.urandom(1) * size for size in sizes}), sync=True)
            assert [len(value) for _, value in read_all(engine)] == list(sizes)
            assert [len(engine.get(b"%08d" % size) or b"") for size in sizes] == list(sizes)

    # -- limits ----------------------------------------------------------------------------------------------------

    def test_the_longest_key_works(self, tmp_path: Path) -> None:
        longest = b"\xff" * engine_limit(self, tmp_path)
        with self.opened(tmp_path) as engine:
            engine.apply(Batch({longest: b"v", longest[:-1]: b"w"}), sync=True)
            assert engine.get(longest) == b"v"
            assert engine.floor(longest) == (longest, b"v")
            assert read_all(engine, longest) == [(longest, b"v")]
            engine.apply(Batch({longest: None}), sync=True)
            assert engine.get(longest) is None

    def test_a_key_too_long_is_refused_before_any_write(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            engine.apply(Batch({b"a": b"1"}), sync=True)
            too_long = b"k" * (engine.capabilities.key_bytes_max + 1)
            bad = Batch({b"a": b"2", b"b": b"2", too_long: b"x"}, [(b"", b"\xff")])
            expect_error(LimitExceeded, lambda: engine.apply(bad, sync=True))
            assert read_all(engine) == [(b"a", b"1")]
            engine.apply(Batch({b"a": b"3"}), sync=True)
            assert engine.get(b"a") == b"3", "a refused batch must not poison the engine"

    def test_an_empty_key_is_refused(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            expect_error(InvalidInputError, lambda: engine.apply(Batch({b"": b"x", b"a": b"1"}), sync=True))
            assert read_all(engine) == []

    def test_a_page_size_outside_the_limits_is_refused(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            for limit in (0, -1, 100_001):
                expect_error(InvalidInputError, lambda limit=limit: engine.scan(limit=limit))  # type: ignore[misc]
            assert engine.scan(limit=100_000) == Page([], None)

    # -- batches ---------------------------------------------------------------------------------------------------

    def test_an_empty_batch_changes_nothing(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            engine.apply(Batch(), sync=True)
            engine.apply(Batch({b"a": b"1"}), sync=False)
            engine.apply(Batch(), sync=False)
            engine.apply(Batch({}, [(b"b", b"b"), (b"c", b"a")]), sync=True)
            engine.sync()
            engine.sync()
            assert read_all(engine) == [(b"a", b"1")]

    def test_delete_ranges_act_before_rows(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            engine.apply(Batch({b"%c" % c: b"old" for c in b"abcdef"}), sync=True)
            engine.apply(Batch({b"c": b"new", b"d": None, b"cc": b"new"}, [(b"b", b"e"), (b"f", b"g")]), sync=True)
            assert read_all(engine) == [(b"a", b"old"), (b"c", b"new"), (b"cc", b"new"), (b"e", b"old")]
            engine.apply(Batch({b"z": b"1"}, [(b"", b"\xff")]), sync=True)
            assert read_all(engine) == [(b"z", b"1")]

    def test_deleting_what_is_not_there_is_fine(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            engine.apply(Batch({b"a": None, b"b": b"1"}, [(b"c", b"d")]), sync=True)
            engine.apply(Batch({b"a": None, b"b": None}), sync=True)
            assert read_all(engine) == []

    def test_a_batch_is_visible_over_all_prefixes_at_once(self, tmp_path: Path) -> None:
        tables = [bytes([i]) + b"t" for i in range(0, 250, 10)]
        with self.opened(tmp_path) as engine:
            engine.apply(Batch(dict.fromkeys(tables, b"0")), sync=True)
            failures: list[object] = []
            done = threading.Event()

            def watch() -> None:
                try:
                    while not done.is_set():
                        with engine.snapshot() as view:
                            seen: set[bytes | None] = {value for _, value in view.scan().rows}
                            seen.update(view.get_many(tables))
                        if len(seen) != 1:
                            failures.append(seen)
                except BaseException as error:  # noqa: BLE001 - shown by the main thread
                    failures.append(error)

            watcher = threading.Thread(target=watch)
            watcher.start()
            for number in range(60):
                engine.apply(Batch(dict.fromkeys(tables, b"%d" % number)), sync=False)
            done.set()
            watcher.join()
            assert not failures, failures[0]

    def test_a_batch_is_not_kept_or_changed(self, tmp_path: Path) -> None:
        rows: dict[bytes, bytes | None] = {b"a": b"1", b"b": None}
        with self.opened(tmp_path) as engine:
            batch = Batch(rows, [(b"x", b"y")])
            engine.apply(batch, sync=False)
            assert batch == Batch({b"a": b"1", b"b": None}, [(b"x", b"y")])
            rows[b"a"] = b"changed"
            rows[b"c"] = b"added"
            assert read_all(engine) == [(b"a", b"1")]

    # -- floor and scan --------------------------------------------------------------------------------------------

    def test_floor(self, tmp_path: Path) -> None:
        keys = (b"b", b"b\x00", b"d", b"d\xff", b"\xff\xff")
        with self.opened(tmp_path) as engine:
            engine.apply(Batch({key: b"v" + key for key in keys}), sync=True)
            probes = (b"\x00", b"a", b"b", b"b\x00", b"b\x00\x00", b"c", b"d", b"d\xfe", b"d\xff", b"e", b"\xff" * 3)
            with engine.snapshot() as view:
                for reader in (engine, view):
                    for key in probes:
                        for low in (b"", *probes):
                            below = [found for found in keys if low <= found <= key]
                            wanted = (below[-1], b"v" + below[-1]) if below else None
                            assert reader.floor(key, low) == wanted, (key, low)

    def test_ceiling(self, tmp_path: Path) -> None:
        keys = (b"b", b"b\x00", b"d", b"d\xff", b"\xff\xff", b"\xff" * 500)
        with self.opened(tmp_path) as engine:
            assert engine.ceiling(b"", b"\xff") is None
            engine.apply(Batch({key: b"v" + key[:3] for key in keys}), sync=True)
            probes = (b"", b"a", b"b", b"b\x00", b"b\x00\x00", b"c", b"d", b"d\xfe", b"e", b"\xff" * 3, b"\xff" * 501)
            with engine.snapshot() as view:
                for reader in (engine, view):
                    for key in probes:
                        for high in probes:
                            above = [found for found in keys if key <= found < high]
                            wanted = (above[0], b"v" + above[0][:3]) if above else None
                            assert reader.ceiling(key, high) == wanted, (key, high)

    def test_paging_forward_and_reverse_under_garbage_collection(self, tmp_path: Path) -> None:
        rows = [(b"key%05d" % i, b"x" * (i % 40)) for i in range(300)]
        with self.opened(tmp_path) as engine:
            engine.apply(Batch(dict(rows)), sync=True)
            wanted = rows[100:200]
            for limit in (1, 7, 99, 100, 101):
                for reverse in (False, True):
                    start, stop = bytes(bytearray(b"key00100")), bytes(bytearray(b"key00200"))
                    found: list[Row] = []
                    while True:
                        page = engine.scan(start, stop, reverse=reverse, limit=limit)
                        if limit > 7:
                            gc.collect()
                        junk = [bytes([i % 256]) * 48 for i in range(50)]
                        found.extend(page.rows)
                        assert len(page.rows) <= limit
                        assert len(junk) == 50
                        if page.resume is None:
                            break
                        assert page.rows, "an empty page that is not the last one"
                        start, stop = (start, page.resume) if reverse else (page.resume, stop)
                    assert found == (wanted[::-1] if reverse else wanted)

    def test_a_page_says_exactly_when_it_is_the_last(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            engine.apply(Batch({b"%d" % i: b"" for i in range(10)}), sync=True)
            for reverse in (False, True):
                assert engine.scan(b"2", b"6", reverse=reverse, limit=4).resume is None
                assert engine.scan(b"2", b"6", reverse=reverse, limit=3).resume is not None
                assert engine.scan(reverse=reverse, limit=10).resume is None
                assert engine.scan(reverse=reverse, limit=9).resume is not None

    @pytest.mark.slow
    def test_a_model_agrees(self, tmp_path: Path) -> None:
        key = st.binary(min_size=1, max_size=3)
        row = st.tuples(key, st.none() | st.binary(max_size=3))
        change = st.tuples(st.lists(row, max_size=8), st.lists(st.tuples(key, key), max_size=2), st.booleans())
        counter = iter(range(10_000))

        @settings(
            max_examples=15, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(st.lists(change, max_size=6), st.lists(st.tuples(key, key), max_size=4), st.integers(1, 4))
        def check(changes: list[tuple[list[tuple[bytes, bytes | None]], list[tuple[bytes, bytes]], bool]],
                  ranges: list[tuple[bytes, bytes]], limit: int) -> None:  # fmt: skip
            place = tmp_path / str(next(counter))
            place.mkdir()
            with self.opened(place) as engine:
                model: dict[bytes, bytes] = {}
                for rows, deletions, sync in changes:
                    batch = Batch(dict(rows), deletions)
                    engine.apply(batch, sync=sync)
                    apply_to_model(model, batch)
                ordered = sorted(model.items())
                assert read_all(engine, limit=limit) == ordered
                for low, high in ranges:
                    wanted = [row for row in ordered if low <= row[0] < high]
                    assert read_all(engine, low, high, limit=limit) == wanted
                    assert read_all(engine, low, high, reverse=True, limit=limit) == wanted[::-1]
                    assert engine.get(low) == model.get(low)
                    below = [row for row in ordered if low <= row[0] <= high]
                    assert engine.floor(high, low) == (below[-1] if below else None)
                    assert engine.ceiling(low, high) == (wanted[0] if wanted else None)

        check()

    # -- snapshots -------------------------------------------------------------------------------------------------

    def test_a_snapshot_does_not_see_later_batches(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            engine.apply(Batch({b"a": b"1", b"b": b"1", b"q": b"1"}), sync=False)
            with engine.snapshot() as view:
                engine.apply(Batch({b"a": b"2", b"b": None, b"c": b"2"}, [(b"q", b"r")]), sync=False)
                engine.apply(Batch({b"d": b"3"}), sync=True)
                assert read_all(view) == [(b"a", b"1"), (b"b", b"1"), (b"q", b"1")]
                assert read_all(view, reverse=True, limit=1) == [(b"q", b"1"), (b"b", b"1"), (b"a", b"1")]
                assert view.get_many([b"a", b"b", b"c", b"q"]) == [b"1", b"1", None, b"1"]
                assert (view.get(b"a"), view.get(b"d"), view.floor(b"p")) == (b"1", None, (b"b", b"1"))
            assert read_all(engine) == [(b"a", b"2"), (b"c", b"2"), (b"d", b"3")]
            with engine.snapshot() as view:
                assert view.get(b"d") == b"3"

    def test_a_long_snapshot_does_not_stop_writes(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            engine.apply(Batch({b"%04d" % i: b"old" * 10 for i in range(500)}), sync=True)
            with engine.snapshot() as view:
                first = view.scan(limit=10)
                for turn in range(30):
                    engine.apply(Batch({b"%04d" % i: b"new%d" % turn for i in range(500)}), sync=turn % 10 == 0)
                assert first.resume is not None
                assert {value for _, value in view.scan(first.resume).rows} == {b"old" * 10}
                with engine.snapshot() as second:
                    assert second.get(b"0000") == b"new29"
            assert engine.get(b"0499") == b"new29"

    def test_a_snapshot_refuses_work_after_close(self, tmp_path: Path) -> None:
        engine = self.make_engine(tmp_path / "engine")
        engine.apply(Batch({b"a": b"1"}), sync=True)
        with engine.snapshot() as view:
            assert view.get(b"a") == b"1"
            engine.close()
            expect_error(ClosedError, lambda: view.get(b"a"))
            expect_error(ClosedError, view.scan)

    # -- life of the handle ----------------------------------------------------------------------------------------

    def test_everything_is_there_after_reopen(self, tmp_path: Path) -> None:
        wanted: list[Row] = []
        with self.opened(tmp_path) as engine:
            if not engine.capabilities.persistent:
                pytest.skip("keeps nothing by design")
            for turn, table in enumerate((b"\x00a", b"m", b"\xffz")):
                rows = {table + b"%03d" % i: b"%d" % turn for i in range(200)}
                rows[b"last"] = table
                engine.apply(Batch(rows, [(b"\x00a050", b"\x00a060")] if turn else []), sync=turn == 1)
            wanted = read_all(engine)
            assert len(wanted) == 591
        for _ in range(2):
            with self.opened(tmp_path) as engine:
                assert read_all(engine) == wanted
                assert engine.get(b"last") == b"\xffz"

    def test_reopen_directly_after_close_with_handles_alive(self, tmp_path: Path) -> None:
        engine = self.make_engine(tmp_path / "engine")
        persistent = engine.capabilities.persistent
        engine.apply(Batch({b"a": b"1", b"b": b"2"}), sync=False)
        held: list[object] = [engine.scan(), engine.floor(b"b"), engine.stats(), engine.get]
        manager = engine.snapshot()
        view = manager.__enter__()
        held += [manager, view, view.scan(limit=1)]
        engine.close()
        with self.opened(tmp_path) as again:
            assert again.get(b"a") == (b"1" if persistent else None)
            again.apply(Batch({b"c": b"3"}), sync=True)
        manager.__exit__(None, None, None)
        assert held

    def test_every_call_after_close_is_refused(self, tmp_path: Path) -> None:
        engine = self.make_engine(tmp_path / "engine")
        engine.apply(Batch({b"a": b"1"}), sync=True)
        get = engine.get
        engine.close()
        engine.close()
        calls: list[Callable[[], object]] = [
            lambda: engine.get(b"a"),
            lambda: get(b"a"),
            lambda: engine.get_many([b"a"]),
            lambda: engine.floor(b"a"),
            lambda: engine.ceiling(b"a", b"b"),
            engine.scan,
            lambda: engine.apply(Batch({b"a": b"2"}), sync=False),
            engine.sync,
            lambda: engine.snapshot().__enter__(),
            lambda: engine.checkpoint(tmp_path / "copy"),
            engine.refresh,
            engine.stats,
        ]
        for call in calls:
            expect_error(ClosedError, call)

    @pytest.mark.slow
    def test_threads_read_while_one_applies(self, tmp_path: Path) -> None:
        keys = [b"%04d" % i for i in range(300)]
        with self.opened(tmp_path) as engine:
            engine.apply(Batch({key: key for key in keys}), sync=True)
            failures: list[object] = []
            done = threading.Event()

            def read(seed: int) -> None:
                choose = random.Random(seed)
                try:
                    while not done.is_set():
                        key = choose.choice(keys)
                        assert (engine.get(key) or b"").startswith(key)
                        assert engine.get_many([key, b"none"])[1] is None
                        floor = engine.floor(key + b"\x00")
                        assert (floor or (b"", b""))[0] == key
                        page = engine.scan(key, limit=5)
                        assert page.rows[0][0] == key
                except BaseException as error:  # noqa: BLE001 - shown by the main thread
                    failures.append(error)

            readers = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
            for reader in readers:
                reader.start()
            for turn in range(25):
                engine.apply(Batch({key: key + b"%d" % turn for key in keys}), sync=turn % 10 == 0)
            done.set()
            for reader in readers:
                reader.join()
            assert not failures, failures[0]

    def test_close_waits_for_calls_in_flight(self, tmp_path: Path) -> None:
        engine = self.make_engine(tmp_path / "engine")
        keys = [b"%05d" % i for i in range(2000)]
        engine.apply(Batch({key: key for key in keys}), sync=True)
        ended: list[BaseException] = []
        started = threading.Barrier(3)

        def read() -> None:
            started.wait()
            try:
                while True:
                    assert len(engine.get_many(keys)) == len(engine.scan(limit=2000).rows)
            except BaseException as error:  # noqa: BLE001 - shown by the main thread
                ended.append(error)

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        started.wait()
        engine.close()
        for reader in readers:
            reader.join()
        assert [type(error) for error in ended] == [ClosedError, ClosedError], ended

    # -- copies and figures ----------------------------------------------------------------------------------------

    def test_a_checkpoint_is_a_consistent_copy(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            if not engine.capabilities.checkpoint:
                expect_error(InvalidInputError, lambda: engine.checkpoint(tmp_path / "copy"))
                return
            engine.apply(Batch({b"%03d" % i: b"1" for i in range(300)}), sync=True)
            engine.apply(Batch({b"unsynced": b"1"}), sync=False)
            wanted = read_all(engine)
            engine.checkpoint(tmp_path / "copy")
            engine.apply(Batch({b"later": b"1"}, [(b"", b"1")]), sync=True)
            expect_error(HoldfastError, lambda: engine.checkpoint(tmp_path / "copy"))
            copy = self.make_engine(tmp_path / "copy")
            try:
                assert read_all(copy) == wanted
                copy.apply(Batch({b"mine": b"1"}), sync=True)
            finally:
                copy.close()
            assert engine.get_many([b"mine", b"later"]) == [None, b"1"]

    def test_figures(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            engine.apply(Batch({b"%06d" % i: os.urandom(50) for i in range(2000)}), sync=True)
            stats = engine.stats()
            assert stats.size_bytes > 50_000 if engine.capabilities.persistent else stats.size_bytes == 0

    # -- space -----------------------------------------------------------------------------------------------------

    def test_reclaiming_changes_no_row(self, tmp_path: Path) -> None:
        rows = {b"%d/%03d" % (table, i): b"%d" % i * 9 for table in range(3) for i in range(200)}
        with self.opened(tmp_path) as engine:
            engine.apply(Batch(dict(rows)), sync=True)
            gone = [b"1/%03d" % i for i in range(200) if i % 3]
            engine.apply(Batch({**dict.fromkeys(gone), b"1/000": b"newer"}, [(b"2/050", b"2/150")]), sync=False)
            wanted = read_all(engine)
            assert len(wanted) == 200 + 67 + 100
            with engine.snapshot() as view:
                engine.reclaim(b"1/", b"2/")
                assert read_all(view) == wanted, "a snapshot moved"
            for low, high in ((b"", b"\xff" * 9), (b"8", b"9"), (b"9", b"8"), (b"1/000", b"1/000")):
                engine.reclaim(low, high)
                assert read_all(engine) == wanted, "rows changed, or came back"
            engine.apply(Batch({b"later": b"1", b"0/000": None}), sync=True)
            wanted = [*wanted[1:], (b"later", b"1")]
            assert read_all(engine) == wanted
            persistent = engine.capabilities.persistent
        if persistent:
            with self.opened(tmp_path) as engine:
                assert read_all(engine) == wanted
        expect_error(ClosedError, lambda: engine.reclaim(b"", b"1"))

    @pytest.mark.slow
    def test_reads_and_writes_go_on_while_space_is_reclaimed(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as engine:
            engine.apply(Batch({b"a/%05d" % i: b"x" * 100 for i in range(20_000)}), sync=True)
            engine.apply(Batch(delete_ranges=[(b"a/00000", b"a/19000")]), sync=False)
            failures: list[object] = []

            def reclaim() -> None:
                try:
                    for _ in range(3):
                        engine.reclaim(b"a/", b"a0")
                except BaseException as error:  # noqa: BLE001 - shown by the main thread
                    failures.append(error)

            thread = threading.Thread(target=reclaim)
            thread.start()
            number = 0
            while thread.is_alive() or number < 20:
                number += 1
                engine.apply(Batch({b"b/%05d" % number: b"%d" % number, b"a/%05d" % (number % 7): None}), sync=False)
                assert engine.get(b"b/%05d" % number) == b"%d" % number
                assert engine.get(b"a/19000") == b"x" * 100
            thread.join()
            assert not failures, failures[0]
            assert len(read_all(engine, b"a/", b"a0")) == 1000
            assert len(read_all(engine, b"b/", b"b0")) == number

    @pytest.mark.slow
    def test_what_was_reclaimed_has_room_for_as_much(self, tmp_path: Path) -> None:
        choose = random.Random(1)
        with self.opened(tmp_path) as engine:
            sizes = []
            for turn in range(4):
                for part in range(10):
                    rows: dict[bytes, bytes | None] = {
                        b"h/%05d/%d" % (part * 400 + i, turn): choose.randbytes(250) for i in range(400)
                    }
                    engine.apply(Batch(rows), sync=True)
                sizes.append(engine.stats().size_bytes)
                gone = [b"h/%05d/%d" % (i, turn) for i in range(4000)]
                for at in range(0, 4000, 400):
                    engine.apply(Batch(dict.fromkeys(gone[at : at + 400])), sync=True)
                engine.reclaim(b"h/", b"h0")
                assert read_all(engine) == []
            assert max(sizes[1:]) <= sizes[0] * 1.5, f"every turn takes more: {sizes}"

    # -- crashes ---------------------------------------------------------------------------------------------------

    @pytest.mark.slow
    def test_a_killed_process_leaves_a_prefix_of_batches(self, tmp_path: Path) -> None:
        if self.factory is None:
            pytest.skip("no factory for the child")
        with self.opened(tmp_path) as engine:
            if not engine.capabilities.persistent:
                pytest.skip("keeps nothing by design")
        head = 0
        for turn in range(4):
            synced = run_and_kill(self.factory, tmp_path / "engine", head, acknowledgements=2 + turn)
            with self.opened(tmp_path) as engine:
                head = int.from_bytes(engine.get(b"head") or b"", "big")
                assert head >= synced, "a synced batch is lost"
                for table in (b"a", b"m", b"z"):
                    rows = read_all(engine, table, table + b"\xff" * 9)
                    assert [key for key, _ in rows] == [
                        table + n.to_bytes(8, "big") for n in range(30, head * 30 + 30)
                    ], "the map is not a prefix of the batches"
                    assert all(
                        int.from_bytes(key[1:], "big") // 30 == int.from_bytes(value[:8], "big") for key, value in rows
                    )


def engine_limit(suite: EngineContract, path: Path) -> int:
    """``key_bytes_max`` of the suite's engine."""
    with suite.opened(path) as engine:
        return engine.capabilities.key_bytes_max


def apply_to_model(model: dict[bytes, bytes], batch: Batch) -> None:
    """``model`` has taken ``batch``."""
    for low, high in batch.delete_ranges:
        for key in [key for key in model if low <= key < high]:
            del model[key]
    for key, value in batch.rows.items():
        if value is None:
            model.pop(key, None)
        else:
            model[key] = value


def run_and_kill(factory: str, path: Path, head: int, *, acknowledgements: int) -> int:
    """A child has applied batches from ``head`` on and was killed; the last batch number it acknowledged."""
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, factory, str(path), str(head)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
    )
    assert child.stdout is not None
    try:
        lines = [child.stdout.readline() for _ in range(acknowledgements)]
    finally:
        child.send_signal(signal.SIGKILL)
    lines += child.stdout.read().splitlines()
    child.stdout.close()
    child.wait()
    numbers = [int(line) for line in lines if line.strip()]
    assert numbers, "the child died before its first batch"
    return numbers[-1]
