"""The error tree is a promise: classes, codes and exit codes are pinned here, and the operator's table equals them."""

from __future__ import annotations

import json
import re

import pytest

from holdfast import errors
from holdfast.errors import HoldfastError, all_errors
from tests.meta.tables import OPERATIONS, main, meaning, renewed

TREE = """
HoldfastError holdfast 1
  NotFoundError not_found 14
    BlockNotFound block_not_found 14
    StoreNotFound store_not_found 14
  PrunedError pruned 15
  IndexBehind index_behind 15 retry
  ViewExpired view_expired 15 retry
  ConflictError conflict 16
    ParentMismatch parent_mismatch 16 retry
    ParentUnknown parent_unknown 16 retry
    EngineMismatch engine_mismatch 16
    ForeignStore foreign_store 16
    StoreExists store_exists 16
    RootMismatch root_mismatch 16
    IndexFailed index_failed 16
    CallbackError callback_failed 16
  SafetyError safety 11
    FinalityError below_finality 11
      ReorgTooDeep reorg_too_deep 11
    EquivocationError equivocation 11
    SafetyStateMissing safety_missing 11
    FencedError fenced 11
  InvalidInputError invalid_input 2
  InvalidBlock invalid_block 10
  LimitExceeded limit_exceeded 10
  ProofInvalid proof_invalid 10
  SnapshotInvalid snapshot_invalid 10
  RemoteError remote 17 retry
    AnswerTooLarge remote_answer_too_large 17 retry
  FormatError format 9
    UnsupportedFormat unsupported_format 9
      FormatTooNew format_too_new 9
    CorruptionError corruption 3
      MissingFile missing_file 3
      CommitLoss commit_loss 4
  EngineError engine 6
    OutOfSpace out_of_space 5 retry
    DeviceError device 6
    PoisonedError poisoned 6
    ResourceExhausted resources 13 retry
    RecoveryTimeout recovery_timeout 12
  StateError state 18
    ClosedError closed 18
    ReadOnlyError read_only 8
    StoreLocked locked 7 retry
  MiningError mining 19 retry
    MiningCancelled mining_cancelled 19 retry
  PersistenceError persistence 6
  InternalError internal 70
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
    retry = " retry" if kind.retryable else ""
    lines = [f"{'  ' * depth}{kind.__name__} {kind.code} {kind.exit_code}{retry}"]
    for child in kind.__subclasses__():
        lines += draw(child, depth + 1)
    return lines


def test_the_tree_is_as_published() -> None:
    assert draw(HoldfastError) == TREE.strip().split("\n")


def test_every_class_is_exported_and_stands_in_one_module() -> None:
    classes = {kind.__name__ for kind in all_errors()}
    assert classes == set(errors.__all__) - {"all_errors"}
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
    assert plain["retryable"] is kind.retryable
    assert plain["context"] == {"path": "journal/1.seg", "offset": 7, "key": "01ff"}


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
