"""``verify`` and the state: a good one is good; damage to each kind of its rows is found, and a rebuild mends it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from holdfast.blocks.state import decode_state, encode_state
from holdfast.engine.api import Batch, Engine
from holdfast.engine.open import open_engine
from holdfast.errors import PrunedError
from holdfast.merkle.api import Tree
from holdfast.recovery import VerifyReport, rebuild_views, verify_store
from holdfast.state.draft import DraftState
from holdfast.state.image import image_path
from holdfast.state.rows import Execution
from holdfast.store.writer import Writer
from holdfast.views.flush import load_applied
from holdfast.views.history import HISTORY_KEY, decode_record, encode_record, history_key
from holdfast.views.rows import APPLIED_KEY, decode_row, encode_applied, encode_row
from holdfast.views.tables import BLOBS, HISTORY, PREIMAGES, STATE, Table
from tests.unit.state_support import Values, assert_tip, commit, grown, large, open_state_store, root_of

ENGINES = ["rocksdb", "lmdb", "sqlite"]
BIG = large("big", 2_500_000)
Change = Callable[[Engine], dict[bytes, bytes | None]]
"""Rows to store as they are; ``None`` removes one."""


def filled(url: str | Path, **fields: Any) -> Values:
    """A closed store with a history, forks, a reorg, large values present and past; the state at its tip."""
    with open_state_store(url, **fields) as store:
        chain = grown(
            store,
            [
                {b"key/%d" % (number + step): b"%d at %d" % (number, step) for number in range(20)}
                | {b"gone": b"soon" if step < 4 else None, b"big": large(step, 70_000 + step)}
                for step in range(6)
            ],
        )
        store.flush()
        fork = chain[3][0]
        commit(store, "side", {b"key/5": b"of the side", b"only here": b"x"}, fork)
        rival = fork
        for step in range(3):
            rival = commit(store, ("rival", step), {b"rival/%d" % step: b"v", b"key/9": None}, rival)
        commit(store, "plain", None)
        commit(store, "last", {b"huge": BIG, b"key/7": b"last"})
        return dict(store.state.scan())


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], Values]:
    """The files of such a store, and its state."""
    path = tmp_path_factory.mktemp("state") / "store"
    values = filled(f"sqlite:{path}")
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}, values


@pytest.fixture
def path(tmp_path: Path, image: tuple[dict[str, bytes], Values]) -> Path:
    for name, data in image[0].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


def data_of(path: Path) -> Path:
    return path / "views" / (path / "views" / "CURRENT").read_text().strip() / "data"


def change(path: Path, do: Change) -> None:
    engine = open_engine("sqlite", data_of(path), create=False)
    engine.apply(Batch(do(engine)), sync=True)
    engine.close()


def rows_of(engine: Engine, table: Table) -> list[tuple[bytes, bytes]]:
    """Engine keys and plain values."""
    return [(key, decode_row(key, stored)) for key, stored in engine.scan(table.prefix, table.end).rows]


def found(report: VerifyReport, *checks: str) -> None:
    assert not report.ok
    assert {problem.check for problem in report.problems} & {*checks}, report.as_dict()
    for problem in report.problems:
        assert problem.message
        assert problem.remedy
    assert report.exit_code == 3


# -- good stores ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("scheme", ["jmt-sha256", "ics23-smt"])
def test_a_good_state_is_good(tmp_path: Path, engine: str, scheme: str) -> None:
    filled(f"{engine}:{tmp_path}", scheme=scheme)
    for level in ("state", "views", "full"):
        report = verify_store(tmp_path, level=level)
        assert report.ok, report.as_dict()
        assert report.notes == ()
    counts = {check.name: check.checked for check in verify_store(tmp_path, level="full").checks}
    assert counts["state"] > 20
    assert counts["preimages"] == counts["state"]
    assert counts["blobs"] == 1 + 6 + 3
    assert counts["roots"] == 6 + 4 + 2
    assert counts["history"] > 20


@pytest.mark.slow
def test_no_history_and_no_views_are_no_problem(tmp_path: Path) -> None:
    filled(f"sqlite:{tmp_path}", history="off")
    assert verify_store(tmp_path, level="full").ok
    (tmp_path / "views" / "CURRENT").unlink()
    report = verify_store(tmp_path, level="full")
    assert report.ok
    assert any("no views" in note for note in report.notes)
    assert report.checks[-1].name == "roots"
    assert report.checks[-1].checked == 12


@pytest.mark.slow
@pytest.mark.parametrize(("blocks", "every"), [(1, 0), (2, 2), (2, 3), (1, 4)])
def test_a_pruned_history_is_good_and_its_damage_found(tmp_path: Path, blocks: int, every: int) -> None:
    with open_state_store(f"sqlite:{tmp_path}") as store:
        grown(store, [{b"a": b"%d" % step, b"b": b"%d" % (step // 3), b"%d" % step: b"x"} for step in range(14)])
        store.finalize(12)
        report = store.prune(blocks=blocks, every=every)
        assert report.rows
        assert report.complete
        readable = {}
        for height in range(14):
            with contextlib.suppress(PrunedError):
                readable[height] = dict(store.state.at(height).scan())
    assert set(readable) == {height for height in range(14) if height >= 13 - blocks or (every and height % every == 0)}
    assert verify_store(tmp_path, level="full").ok
    rows: list[bytes] = []

    def list_rows(engine: Engine) -> dict[bytes, bytes | None]:
        rows.extend(key for key, _ in _answering(engine, HISTORY))
        return {}

    change(tmp_path, list_rows)
    for key in rows:  # each row that is left is needed
        kept: dict[bytes, bytes | None] = {}

        def drop(engine: Engine, key: bytes = key, kept: dict[bytes, bytes | None] = kept) -> dict[bytes, bytes | None]:
            kept[key] = engine.get(key)
            return {key: None}

        change(tmp_path, drop)
        found(verify_store(tmp_path, level="views"), "rows", "history")
        change(tmp_path, lambda _engine, kept=kept: kept)  # type: ignore[misc]
    assert verify_store(tmp_path, level="full").ok


@pytest.mark.slow
def test_history_that_began_late_is_good(tmp_path: Path) -> None:
    with open_state_store(f"sqlite:{tmp_path}", history="off") as store:
        grown(store, [{b"a": b"%d" % step} for step in range(5)])
    with open_state_store(tmp_path) as store:
        grown(store, [{b"a": b"%d" % step} for step in range(5, 8)])
    assert verify_store(tmp_path, level="full").ok


# -- damaged rows ---------------------------------------------------------------------------------------------------


def _answering(engine: Engine, table: Table) -> list[tuple[bytes, bytes]]:
    """Rows that answer a question: what was before the root block is asked by nobody."""
    return [row for row in rows_of(engine, table) if table is not HISTORY or row[0][-1] > 0]


def flip(table: Table, which: int = 0) -> Change:
    """A byte of a row is another."""

    def do(engine: Engine) -> dict[bytes, bytes | None]:
        key, _ = _answering(engine, table)[which]
        stored = engine.get(key)
        assert stored is not None
        return {key: stored[:-1] + bytes((stored[-1] ^ 1,))}

    return do


def drop(table: Table, which: int = 0) -> Change:
    """A row is gone."""
    return lambda engine: {_answering(engine, table)[which][0]: None}


def swap(table: Table) -> Change:
    """Two rows have each other's value, with right checksums."""

    def do(engine: Engine) -> dict[bytes, bytes | None]:
        rows = _answering(engine, table)
        one = rows[0]
        other = next(row for row in rows if row[1] != one[1])
        return {one[0]: encode_row(one[0], other[1]), other[0]: encode_row(other[0], one[1])}

    return do


def add(table: Table) -> Change:
    """A row that nobody wrote, well formed, with a right checksum."""

    def do(engine: Engine) -> dict[bytes, bytes | None]:
        raw = b"nobody's"
        key, value = {
            STATE: (STATE.prefix + raw, b"value"),
            PREIMAGES: (PREIMAGES.prefix + sha256(raw).digest(), raw),
            BLOBS: (BLOBS.prefix + sha256(raw).digest() + bytes(4), raw),
            HISTORY: (history_key(raw, 3), b"\x01value"),
        }[table]
        return {key: encode_row(key, value)}

    return do


TABLES = [STATE, PREIMAGES, BLOBS, HISTORY]


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip, drop, swap, add])
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_damage_to_a_row_is_found_and_mended(
    path: Path, image: tuple[dict[str, bytes], Values], table: Table, damage: Callable[[Table], Change]
) -> None:
    change(path, damage(table))
    found(verify_store(path, level="views"), "rows")
    at_state = verify_store(path, level="state")
    if damage is not add or table in (STATE, PREIMAGES):  # what is too much elsewhere answers no question
        found(at_state, table.name, "state", "history")
    rebuild_views(path)
    assert verify_store(path, level="full").ok
    with open_state_store(path) as store:
        assert_tip(store, image[1])


def test_a_leftover_blob_is_harmless_to_the_state_and_found_by_the_views(path: Path) -> None:
    change(path, add(BLOBS))
    assert verify_store(path, level="state").ok
    found(verify_store(path, level="views"), "rows")


def test_damaged_history_of_a_new_block_is_found_by_the_state_level(path: Path) -> None:
    def newest(engine: Engine) -> dict[bytes, bytes | None]:
        key = next(key for key, value in rows_of(engine, HISTORY) if value[:1] == b"\x01" and key[-1] > 5)
        return {key: encode_row(key, b"\x01another value")}

    change(path, newest)
    found(verify_store(path, level="state"), "history")


def test_a_missing_history_row_of_a_new_block_is_found_by_the_state_level(path: Path) -> None:
    change(path, lambda engine: {[key for key, _ in rows_of(engine, HISTORY) if key[-1] > 5][-1]: None})
    found(verify_store(path, level="state"), "history")


def test_a_value_that_is_another_in_all_its_rows_is_found(path: Path) -> None:
    """Row, preimage and checksum fit each other; only the root does not."""

    def do(engine: Engine) -> dict[bytes, bytes | None]:
        key = STATE.prefix + b"key/7"
        return {key: encode_row(key, b"forged")}

    change(path, do)
    report = verify_store(path, level="state")
    found(report, "state")
    problem = next(problem for problem in report.problems if problem.check == "state")
    assert "root" in problem.message


def test_the_record_of_the_history_may_not_be_forged_upwards_alone(path: Path) -> None:
    """A floor that is lower than what is there claims rows that are missing."""

    def pruned(engine: Engine) -> dict[bytes, bytes | None]:
        return {key: None for key, _ in rows_of(engine, HISTORY) if key[-1] < 4}

    change(path, pruned)
    found(verify_store(path, level="views"), "rows")

    def tell(engine: Engine) -> dict[bytes, bytes | None]:
        stored = engine.get(HISTORY_KEY)
        assert stored is not None
        record = decode_record(decode_row(HISTORY_KEY, stored))
        honest = type(record)(3, 0, 3, 3)
        return {HISTORY_KEY: encode_row(HISTORY_KEY, encode_record(honest))}

    change(path, tell)
    assert verify_store(path, level="full").ok


# -- the image ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 20, 60, 100, 170, 200, 500, -1])
def test_a_damaged_image_is_reported_and_made_anew(
    path: Path, image: tuple[dict[str, bytes], Values], place: int
) -> None:
    file = image_path(path)
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(bytes(data))
    report = verify_store(path, level="state")
    found(report, "tree image")
    assert len(report.problems) == 1
    assert "open the store" in report.problems[0].remedy
    with open_state_store(path) as store:
        assert_tip(store, image[1])
        assert store.recovery.tree == "rebuilt"
    assert verify_store(path, level="full").ok


def test_a_missing_image_is_no_problem(path: Path) -> None:
    image_path(path).unlink()
    assert verify_store(path, level="full").ok


def test_an_image_of_another_store_is_reported(path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    with open_state_store(f"sqlite:{other}") as store:
        commit(store, 0, {b"a": b"b"})
    image_path(path).write_bytes(image_path(other).read_bytes())
    found(verify_store(path, level="state"), "tree image")


# -- large values, and roots in the journal --------------------------------------------------------------------------


@pytest.mark.slow
def test_each_kind_of_damage_to_large_values_is_found_by_their_own_check(path: Path) -> None:
    """Also of a value that no key has any more, nor the newest history."""

    def whole(engine: Engine) -> list[tuple[bytes, bytes]]:
        return [row for row in rows_of(engine, BLOBS) if len(row[1]) == 1024 * 1024]

    def shortened(engine: Engine) -> dict[bytes, bytes | None]:
        key, value = whole(engine)[0]
        return {key: encode_row(key, value[:-1])}

    def other(engine: Engine) -> dict[bytes, bytes | None]:
        key, value = next(row for row in rows_of(engine, BLOBS) if len(row[1]) < 1024 * 1024)
        return {key: encode_row(key, bytes((value[0] ^ 1,)) + value[1:])}

    def without_its_first(engine: Engine) -> dict[bytes, bytes | None]:
        return {whole(engine)[0][0]: None}

    good: dict[bytes, bytes | None] = {}

    def keep(engine: Engine) -> dict[bytes, bytes | None]:
        good.update(engine.scan(BLOBS.prefix, BLOBS.end).rows)
        return {}

    change(path, keep)
    for damage in (shortened, other, without_its_first):
        change(path, damage)
        report = verify_store(path, level="state")
        assert "blobs" in {problem.check for problem in report.problems}, damage.__name__
        change(path, lambda _engine: good)
    assert verify_store(path, level="state").ok


@pytest.mark.parametrize("forged", ["root", "inserted", "removed"])
def test_a_block_that_lies_about_its_changes_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forged: str
) -> None:
    """A journal that fits itself in every hash, written by a program that did not check what it wrote."""
    execution_of = DraftState.execution

    def lying(self: DraftState) -> tuple[Execution, Tree]:
        execution, tree = execution_of(self)
        if forged == "root":
            execution.root = root_of({b"another": b"state"})
        elif forged == "inserted":
            execution.inserted = list(execution.inserted)[1:]
        else:
            execution.changes = execution.changes | {b"never there": None}
            execution.removed = [*execution.removed, (sha256(b"never there").digest(), b"never there")]
        return execution, tree

    with open_state_store(f"sqlite:{tmp_path}") as store:
        commit(store, 0, {b"a": b"1"})
        with monkeypatch.context() as patch:
            patch.setattr(DraftState, "execution", lying)
            patch.setattr(Writer, "_tree_after", lambda self, prepared, known: known)
            commit(store, 1, {b"b": b"2", b"c": b"3"})
    report = verify_store(tmp_path, level="full")
    assert "roots" in {problem.check for problem in report.problems}, report.as_dict()
    (problem,) = [problem for problem in report.problems if problem.check == "roots"][:1]
    assert problem.place["height"] == 1


def test_the_root_in_the_record_of_the_flush_is_compared(path: Path) -> None:
    def forge(engine: Engine) -> dict[bytes, bytes | None]:
        applied = load_applied(engine)
        assert applied is not None
        state = decode_state(applied.state)._replace(state_root=root_of({b"another": b"state"}))
        forged = replace(applied, state=encode_state(state))
        return {APPLIED_KEY: encode_row(APPLIED_KEY, encode_applied(forged))}

    change(path, forge)
    report = verify_store(path, level="full")
    assert {"state", "roots", "tree image"} <= {problem.check for problem in report.problems}
