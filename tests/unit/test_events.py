"""What opening a store found: an object, typed events of ``logging``, and a part of the statistics."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import holdfast
from holdfast import RecoveryStats
from holdfast._fs import RealFileSystem
from holdfast.events import EVENTS, LOGGER_NAME, emit, store_opened
from holdfast.journal.segment import segment_name
from holdfast.recovery.resting import read_marks
from holdfast.store.opening import read_identity
from holdfast.types import DiscardedFrames
from tests.unit.store_support import filled, hash_of, make, open_quick, quick

CUT = DiscardedFrames(1, 4096, 33, "torn", "quarantine/1-4096")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger=LOGGER_NAME)
    return caplog


Logged = dict[str, tuple[int, str, dict[str, object]]]


def told(log: pytest.LogCaptureFixture) -> Logged:
    """Level, message and fields of every event since the last look, by name; none twice."""
    found: Logged = {}
    for record in log.records:
        assert record.name == LOGGER_NAME
        name, fields = vars(record)["holdfast_event"], vars(record)["holdfast_fields"]
        assert name not in found
        assert record.levelno == EVENTS[name].level
        assert json.loads(json.dumps(fields)) == fields
        found[name] = record.levelno, record.getMessage(), fields
    log.clear()
    return found


def only(log: pytest.LogCaptureFixture) -> tuple[int, str, dict[str, object]]:
    """Level, message and fields of ``opened``, which is the one event since the last look."""
    found = told(log)
    assert list(found) == ["opened"]
    return found["opened"]


def test_an_event_carries_its_name_and_fields(log: pytest.LogCaptureFixture) -> None:
    emit("tried", logging.ERROR, "100% of %s", name="x", level=7, message="m", created=True)
    (record,) = log.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "100% of %s")
    assert vars(record)["holdfast_event"] == "tried"
    assert vars(record)["holdfast_fields"] == {"name": "x", "level": 7, "message": "m", "created": True}
    log.clear()
    log.set_level(logging.ERROR, logger=LOGGER_NAME)
    emit("tried", logging.WARNING, "not asked for")
    assert log.records == []


def test_clean_opens_are_information(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    filled(f"sqlite:{tmp_path}")
    level, message, fields = only(log)
    assert level == logging.INFO
    assert message == f"created the store sqlite:{tmp_path}"
    assert (fields["created"], fields["engine"], fields["url"]) == (True, "sqlite", f"sqlite:{tmp_path}")
    with open_quick(tmp_path) as store:
        level, message, fields = only(log)
        assert level == logging.INFO
        assert "after a clean end" in message
        assert fields == store.recovery.as_dict() | {"url": str(tmp_path), "engine": "sqlite", "read_only": False}
        assert {field.name for field in dataclasses.fields(RecoveryStats)} <= set(fields)
        assert store.statistics()["recovery"] == store.recovery.as_dict()
        store.finalize(3)
        with holdfast.open(tmp_path, create=False, read_only=True) as follower:
            level, _, fields = only(log)
            assert level == logging.INFO, "that another process writes the journal is no warning"
            assert (fields["read_only"], fields["clean"]) == (True, False)
            assert follower.statistics()["recovery"] == follower.recovery.as_dict()


def test_an_unclean_end_and_a_torn_tail_are_warnings(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    copy = tmp_path / "copy"
    with open_quick(f"sqlite:{tmp_path / 'store'}") as store:
        store.commit(store.draft(), hash=hash_of("a"))
        shutil.copytree(tmp_path / "store", copy)
    log.clear()
    with open_quick(copy) as store:
        assert not store.recovery.clean
        assert not store.recovery.discarded
        found = told(log)
    assert list(found) == ["recovered", "opened"]
    assert "after an unclean end" in found["recovered"][1]
    assert found["recovered"][2]["clean"] is False

    shutil.rmtree(copy)
    with open_quick(tmp_path / "store") as store:
        store.commit(store.draft(), hash=hash_of("b"))
        shutil.copytree(tmp_path / "store", copy)
    log.clear()
    mark, _ = read_marks(RealFileSystem(), copy, read_identity(RealFileSystem(), copy).salt)
    segment = copy / "journal" / segment_name(mark.segment)
    raw = bytearray(segment.read_bytes())
    raw[mark.end_offset : mark.end_offset + 32] = b"HFRM" + b"\xff" * 28
    segment.write_bytes(raw)
    with open_quick(copy) as store:
        found = told(log)
        (cut,) = store.recovery.discarded
        assert list(found) == ["torn_tail_cut", "recovered", "opened"]
        assert cut.length == 32
        assert found["torn_tail_cut"][2] == dataclasses.asdict(cut) | {"url": str(copy)}
        assert found["opened"][2]["discarded"] == [dataclasses.asdict(cut)]
        assert "32 bytes set aside" in found["recovered"][1]


def test_views_made_anew_are_a_warning(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    blocks = filled(f"sqlite:{tmp_path}")
    log.clear()
    shutil.rmtree(tmp_path / "views")
    with open_quick(tmp_path) as store:
        found = told(log)
        assert list(found) == ["recovered", "opened"]
        assert (found["recovered"][2]["views_rebuilt"], found["opened"][2]["tip_height"]) == (True, blocks[-1].height)
        assert "made anew from the journal" in found["recovered"][1]
        store.add(make(blocks[-1]))
    with open_quick(tmp_path):
        assert only(log)[0] == logging.INFO


@pytest.mark.parametrize(
    "stats",
    [
        RecoveryStats(clean=False),
        RecoveryStats(discarded=(CUT,)),
        RecoveryStats(damaged_watermark_slots=1),
        RecoveryStats(views_rebuilt=True),
        RecoveryStats(finished_flush=True),
        RecoveryStats(tree="rebuilt", tree_keys=3),
        RecoveryStats(notes=("something",)),
    ],
    ids=["unclean", "discarded", "watermark", "views", "flush", "tree", "note"],
)
def test_whatever_was_mended_is_a_warning(stats: RecoveryStats, log: pytest.LogCaptureFixture) -> None:
    store_opened(stats, url="x", engine="sqlite", read_only=False)
    assert list(told(log))[-2:] == ["recovered", "opened"]
    store_opened(stats, url="x", engine="sqlite", read_only=True)
    assert ("recovered" in told(log)) is stats.eventful
    assert stats.eventful is (stats != RecoveryStats(clean=False))


def test_how_the_tree_came_to_be_is_told(log: pytest.LogCaptureFixture) -> None:
    stats = RecoveryStats(state_root=b"\x01" * 32, tree="caught_up", tree_keys=12)
    store_opened(stats, url="x", engine="sqlite", read_only=False)
    level, message, fields = only(log)
    assert level == logging.INFO
    assert "tree of 12 keys: caught up" in message
    assert (fields["state_root"], fields["tree"], fields["tree_keys"]) == ("01" * 32, "caught_up", 12)
    assert RecoveryStats().as_dict()["state_root"] is None


QUIET = """
import logging, sys
import holdfast
with holdfast.open(sys.argv[1]) as store:
    pass
with holdfast.open(sys.argv[1], settings=holdfast.Settings(log_level="debug")) as store:
    pass
logger = logging.getLogger("holdfast")
assert [type(handler).__name__ for handler in logger.handlers] == ["NullHandler"], logger.handlers
assert (logger.level, logger.propagate, logging.getLogger().handlers) == (0, True, [])
"""


@pytest.mark.slow
def test_the_library_configures_no_logging_and_prints_nothing(tmp_path: Path) -> None:
    filled(f"sqlite:{tmp_path}")
    shutil.rmtree(tmp_path / "views")  # opening it is a warning
    source = Path(holdfast.__file__).parents[1]
    ended = subprocess.run(
        [sys.executable, "-c", QUIET, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(source)},
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_memory_stores_are_told_too(log: pytest.LogCaptureFixture) -> None:
    with holdfast.open("memory:", settings=quick()):
        level, message, fields = only(log)
    assert (level, message, fields["engine"]) == (logging.INFO, "created the store memory:", "memory")
