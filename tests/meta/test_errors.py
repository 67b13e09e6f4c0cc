"""The error tree is a promise: classes, codes and exit codes are pinned here, and the operator's table equals them."""

from __future__ import annotations

import ast
import json
import re

import pytest

from holdfast import errors
from holdfast.errors import CorruptionError, HoldfastError, OutOfSpace, Recovery, all_errors
from tests.meta.source import modules
from tests.meta.tables import OPERATIONS, main, meaning, renewed

TREE = """
HoldfastError holdfast 1 manual
  NotFoundError not_found 14 fail
    BlockNotFound block_not_found 14 fail
    StoreNotFound store_not_found 14 fail
    BackupNotFound backup_not_found 14 fail
  PrunedError pruned 15 fail
  IndexBehind index_behind 15 retry
  ViewExpired view_expired 15 retry
  ConflictError conflict 16 last_good
    ParentMismatch parent_mismatch 16 last_good
    ParentUnknown parent_unknown 16 refetch
    EngineMismatch engine_mismatch 16 fail
    ForeignStore foreign_store 16 fail
    StoreExists store_exists 16 fail
    RootMismatch root_mismatch 16 last_good
    IndexFailed index_failed 16 last_good
    CallbackError callback_failed 16 last_good
  SafetyError safety 11 manual
    FinalityError below_finality 11 manual
      ReorgTooDeep reorg_too_deep 11 manual
    EquivocationError equivocation 11 manual
    SafetyStateMissing safety_missing 11 manual
    FencedError fenced 11 manual
  InvalidInputError invalid_input 2 fail
    BackupKeyError backup_key 2 fail
    KeyRequired key_required 2 fail
    KeyRejected key_rejected 2 fail
  InvalidBlock invalid_block 10 refetch
  LimitExceeded limit_exceeded 10 fail
  ProofInvalid proof_invalid 10 refetch
  SnapshotInvalid snapshot_invalid 10 refetch
  RemoteError remote 17 retry
    AnswerTooLarge remote_answer_too_large 17 refetch
    TargetUnavailable backup_target_unavailable 17 retry
  FormatError format 9 manual
    UnsupportedFormat unsupported_format 9 manual
      FormatTooNew format_too_new 9 manual
    FormatTooOld format_too_old 9 manual
    CorruptionError corruption 3 manual
      MissingFile missing_file 3 manual
      CommitLoss commit_loss 4 manual
      BackupDamaged backup_damaged 3 manual
  EngineError engine 6 replay
    OutOfSpace out_of_space 5 retry
    DeviceError device 6 replay
    PoisonedError poisoned 6 replay
    ResourceExhausted resources 13 retry
    RecoveryTimeout recovery_timeout 12 rebuild
  StateError state 18 fail
    ClosedError closed 18 replay
    ReadOnlyError read_only 8 manual
      TargetDenied backup_target_denied 8 manual
    StoreLocked locked 7 retry
      RepositoryLocked repository_locked 7 retry
  MiningError mining 19 retry
    MiningCancelled mining_cancelled 19 retry
  PersistenceError persistence 6 replay
  SavedInPart saved_in_part 6 replay
  InternalError internal 70 manual
"""
"""A line may be added. A code or an exit code that was published never changes and never gets another meaning."""

CATEGORIES = {
    1: "holdfast",
    2: "invalid_input",
    3: "corruption",
    4: "commit_loss",
    5: "out_of_space",
    6: "engine",
    7: "locked",
    8: "read_only",
    9: "format",
    10: "invalid_block",
    11: "safety",
    12: "recovery_timeout",
    13: "resources",
    14: "not_found",
    15: "pruned",
    16: "conflict",
    17: "remote",
    18: "state",
    19: "mining",
    70: "internal",
}
"""Exit code: the code of its first error. Shells use 126 and above; 2 is also what a wrong command line gives."""

ERRORS = pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)


def draw(kind: type[HoldfastError], depth: int = 0) -> list[str]:
    lines = [f"{'  ' * depth}{kind.__name__} {kind.code} {kind.exit_code} {kind.recovery.value}"]
    for child in kind.__subclasses__():
        lines += draw(child, depth + 1)
    return lines


def test_the_tree_is_as_published() -> None:
    assert draw(HoldfastError) == TREE.strip().split("\n")


def test_every_class_is_exported_and_stands_in_one_module() -> None:
    classes = {kind.__name__ for kind in all_errors()}
    assert classes == set(errors.__all__) - {"Recovery", "all_errors"}
    assert {kind.__module__ for kind in all_errors()} == {"holdfast.errors"}


def test_codes_are_unique_words() -> None:
    codes = [kind.code for kind in all_errors()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


def test_each_exit_code_belongs_to_one_category() -> None:
    first: dict[int, str] = {}
    for line in TREE.strip().split("\n"):
        _, code, number, *_ = line.split()
        first.setdefault(int(number), code)
    assert first == CATEGORIES
    assert all(0 < number < 126 for number in CATEGORIES)


@ERRORS
def test_each_error_explains_itself(kind: type[HoldfastError]) -> None:
    assert meaning(kind).endswith(".")
    assert len(kind.default_remedy) > 15
    assert "code" in vars(kind), "each class has a code of its own"


@ERRORS
def test_each_error_says_where_and_what_next(kind: type[HoldfastError]) -> None:
    error = kind("it broke", path="journal/1.seg", offset=7, key=b"\x01\xff", nothing=None)
    assert str(error) == "it broke (path=journal/1.seg, offset=7, key=01ff)"
    assert error.remedy == kind.default_remedy
    assert kind("x", remedy="do this").remedy == "do this"
    plain = json.loads(json.dumps(error.as_dict()))
    assert plain["code"] == kind.code
    assert plain["exit_code"] == kind.exit_code
    assert plain["retryable"] is kind.retryable is (kind.recovery is Recovery.RETRY)
    assert plain["recovery"] == kind.recovery.value
    assert plain["context"] == {"path": "journal/1.seg", "offset": 7, "key": "01ff"}


def test_there_are_seven_strategies_and_each_is_the_one_of_some_class() -> None:
    words = {"retry", "replay", "rebuild", "refetch", "last_good", "manual", "fail"}
    assert {each.value for each in Recovery} == words
    assert {kind.recovery.value for kind in all_errors()} == words


def test_one_error_may_need_another_strategy_than_its_class() -> None:
    error = CorruptionError("a row is bad", recovery=Recovery.REBUILD, key=b"k")
    assert error.recovery is Recovery.REBUILD
    assert "holdfast rebuild" in error.remedy
    assert error.as_dict()["recovery"] == "rebuild"
    assert error.context == {"key": b"k"}
    assert CorruptionError("x", recovery=Recovery.REBUILD, remedy="do this").remedy == "do this"
    same = CorruptionError("x", recovery=Recovery.MANUAL)
    assert (same.recovery, same.remedy) == (Recovery.MANUAL, CorruptionError.default_remedy)
    full = OutOfSpace("no room")
    assert full.retryable
    full.needs(Recovery.REPLAY)
    assert (full.recovery, full.retryable, full.remedy) == (Recovery.REPLAY, False, OutOfSpace.default_remedy)
    assert full.as_dict()["retryable"] is False
    full.needs(Recovery.RETRY)
    assert full.retryable
    assert CorruptionError.recovery is Recovery.MANUAL
    assert OutOfSpace.recovery is Recovery.RETRY


def test_who_advises_a_rebuild_in_words_says_so_to_programs() -> None:
    """Every error whose remedy names the command has the strategy, which brings that remedy along."""
    silent = [
        f"{module.name}:{call.lineno}"
        for module in modules()
        if "holdfast rebuild" in module.text
        for call in ast.walk(module.tree)
        if isinstance(call, ast.Call)
        for word in call.keywords
        if word.arg == "remedy"
        and "holdfast rebuild" in ast.unparse(word.value)
        and all(other.arg != "recovery" for other in call.keywords)
    ]
    assert silent == []
    named = [kind for kind in all_errors() if "'holdfast rebuild" in kind.default_remedy]
    assert {kind.recovery for kind in named} == {Recovery.REBUILD}


def test_long_bytes_are_cut_in_messages() -> None:
    assert str(HoldfastError("x", key=bytes(100))) == f"x (key={'00' * 64}... (100 bytes))"


def test_python_categories_hold() -> None:
    assert issubclass(errors.NotFoundError, KeyError)
    assert issubclass(errors.InvalidInputError, ValueError)
    assert issubclass(errors.InvalidBlock, ValueError)
    assert not issubclass(errors.CorruptionError, ValueError)
    assert not issubclass(errors.PrunedError, KeyError)


def test_the_tables_of_the_operator_equal_the_code() -> None:
    text = OPERATIONS.read_text(encoding="utf-8")
    assert renewed(text) == text, "run 'make docs'"
    assert main([]) == 0


def test_a_changed_table_would_be_noticed() -> None:
    text = OPERATIONS.read_text(encoding="utf-8")
    assert renewed(text.replace("| `corruption` | 3 |", "| `corruption` | 4 |")) == text
