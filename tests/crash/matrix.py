"""The fault matrix: which tests exercise each fault, how often it was met, and a run of the whole tier that missed one.

Invariants:
    * A test says what it met with ``met`` (``support.report`` does); the count goes with its result, from any worker.
    * A test counts only for rows that name it: another count fails the run.
    * After a run of the whole tier each test of a row has met it, or the run has failed.
    * Rows are those of the plan of the crash tests; a number is never reused.

A pytest plugin: it prints the matrix where anything was met, and fails a whole run (``-m crash`` and nothing else that
chooses) in which a row was not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from typing import Any, NamedTuple

import pytest

_PROPERTY = "fault matrix"
CRASH = "tests/crash/"


class Row(NamedTuple):
    """A fault, what must hold, and the tests that bring it about (``file::function`` below ``tests/crash``)."""

    fault: str
    holds: str
    tests: tuple[str, ...]


ROWS: dict[int, Row] = {}


def _row(number: int, fault: str, holds: str, *tests: str) -> None:
    assert number not in ROWS
    ROWS[number] = Row(fault, holds, tests)


_row(
    1,
    "process killed at a file operation, or at random",
    "the store holds what was acknowledged, or one operation more",
    "test_store_kill.py::test_killed_at_random",
    "test_store_steps.py::test_killed_at_every_step",
    "test_pruning_crash.py::test_killed_at_every_step",
    "test_views_crash.py::test_a_process_killed_in_a_flush_changes_nothing",
)
_row(
    2,
    "power loss, what was not synced is gone",
    "as 1; nothing acknowledged is missing",
    "test_explorer_store.py::test_no_image_loses_anything",
    "test_explorer_store.py::test_no_image_of_a_copy_is_less_than_whole",
    "test_journal_crash.py::test_power_cut_at_every_operation",
    "test_documents_crash.py::test_power_cut_at_every_operation",
    "test_backup_crash.py::test_a_power_cut_at_every_operation_of_a_backup",
    "test_backup_crash.py::test_a_power_cut_at_every_operation_of_a_pruning",
    "test_backup_crash.py::test_a_power_cut_at_every_second_operation_of_a_restore",
    "test_backup_crash.py::test_a_power_cut_at_some_operations_of_a_restore_to_a_height",
    "test_checkpoint_crash.py::test_power_cut_at_every_operation",
    "test_doctor_crash.py::test_a_power_cut_at_every_operation_of_a_repair",
    "test_compact_crash.py::test_no_image_loses_anything",
    "test_encrypted_crash.py::test_no_image_of_an_encrypted_store_loses_anything",
)
_row(
    3,
    "torn write, at a grain of 512 bytes",
    "as 1; a torn tail is cut, kept as evidence and counted",
    "test_explorer_store.py::test_no_image_loses_anything",
    "test_explorer_store.py::test_no_image_of_a_copy_is_less_than_whole",
    "test_store_steps.py::test_killed_at_every_step",
    "test_journal_crash.py::test_power_cut_at_every_operation",
    "test_compact_crash.py::test_no_image_loses_anything",
    "test_encrypted_crash.py::test_no_image_of_an_encrypted_store_loses_anything",
)
_row(
    4,
    "crash in a recovery",
    "the next recovery ends with the same",
    "test_explorer_store.py::test_no_image_loses_anything",
    "test_explorer_store.py::test_no_image_of_a_copy_is_less_than_whole",
    "test_journal_crash.py::test_crash_in_recovery",
    "test_doctor_crash.py::test_a_power_cut_at_every_operation_of_a_repair",
    "test_compact_crash.py::test_no_image_loses_anything",
    "test_encrypted_crash.py::test_no_image_of_an_encrypted_store_loses_anything",
)
_row(
    5,
    "power cut of a real ext4 (a loop device, the kernel's shutdown call)",
    "as 1, counted against acknowledgements that were stamped before the cut",
    "test_ext4.py::test_a_real_file_system_loses_its_power",
)
_row(
    6,
    "a device that lies about syncs, then power loss",
    "`commit_loss` or another refusal; never torn content, and older content only where the watermark is lost, too",
    "test_faults_device.py::test_syncs_that_did_nothing_are_detected",
)
_row(
    7,
    "a bit flipped in any kind of file",
    "the same content, or a typed error; a refused open changes nothing",
    "test_store_rot.py::test_damage_is_found_or_harmless",
    "test_journal_rot.py::test_damage_at_every_byte",
)
_row(
    8,
    "a file cut short",
    "as 7",
    "test_store_rot.py::test_damage_is_found_or_harmless",
    "test_journal_rot.py::test_damage_at_every_byte",
)
_row(
    9,
    "a file that is gone, and pairs of files",
    "refused or made anew from the journal; never a fresh, empty store",
    "test_store_rot.py::test_a_file_that_is_gone_makes_no_fresh_store",
)
_row(
    10,
    "pages zeroed or swapped, a file of an older copy",
    "as 7",
    "test_store_rot.py::test_damage_is_found_or_harmless",
    "test_store_rot.py::test_older_files_and_swapped_pages_are_found_or_harmless",
)
_row(
    11,
    "no space (ENOSPC, EFBIG, a full disk)",
    "`out_of_space`; the store is intact, and goes on once there is room",
    "test_store_power.py::test_error_at_every_operation",
    "test_journal_crash.py::test_error_at_every_operation",
    "test_pruning_crash.py::test_error_at_every_operation",
    "test_documents_crash.py::test_error_at_every_operation",
    "test_checkpoint_crash.py::test_an_error_at_every_operation_is_typed_and_costs_one_checkpoint",
    "test_store_contention.py::test_a_full_disk_loses_nothing",
    "test_faults_system.py::test_files_may_not_grow",
    "test_faults_system.py::test_a_full_disk_can_be_read",
    "test_copies_errors.py::test_an_error_at_every_operation_of_a_copy",
    "test_compact_crash.py::test_error_at_every_operation",
    "test_doctor_crash.py::test_an_error_at_any_operation_of_a_repair_is_typed_and_the_next_one_ends_it",
    "test_schedule_crash.py::test_an_error_at_any_operation_is_told_and_the_next_run_is_right",
)
_row(
    12,
    "EIO on any operation",
    "a typed error, no acknowledgement; intact after a restart",
    "test_store_power.py::test_error_at_every_operation",
    "test_journal_crash.py::test_error_at_every_operation",
    "test_pruning_crash.py::test_error_at_every_operation",
    "test_documents_crash.py::test_error_at_every_operation",
    "test_checkpoint_crash.py::test_an_error_at_every_operation_is_typed_and_costs_one_checkpoint",
    "test_copies_errors.py::test_an_error_at_every_operation_of_a_copy",
    "test_compact_crash.py::test_error_at_every_operation",
    "test_doctor_crash.py::test_an_error_at_any_operation_of_a_repair_is_typed_and_the_next_one_ends_it",
    "test_schedule_crash.py::test_an_error_at_any_operation_is_told_and_the_next_run_is_right",
)
_row(
    13,
    "a sync fails (file, directory, batch of an engine)",
    "poisoned, nothing more is written; power loss right after it keeps what was acknowledged",
    "test_faults_device.py::test_a_failed_sync_is_never_forgotten",
)
_row(
    14,
    "a read-only file system, immutable files, files of another user",
    "`read_only`; reading works without writing, or is refused; nothing is changed",
    "test_faults_system.py::test_what_may_not_be_written_is_not",
)
_row(
    15,
    "the clock jumps: back, ahead, 1970, 2000, 2038, 2100",
    "no effect on order, reorgs, pruning and recovery",
    "test_faults_device.py::test_a_clock_that_jumps_changes_nothing",
)
_row(
    16,
    "several processes open at once, a holder killed, fork",
    "one has it, the others name it at once; the child of a fork is refused",
    "test_store_contention.py::test_one_of_many_wins",
    "test_store_contention.py::test_the_child_of_a_fork_is_refused_and_harms_nothing",
)
_row(
    17,
    "no descriptors, no memory (`ulimit -n`, `ulimit -v`)",
    "`resources` or another typed error, or a library's abort, which is a kill; intact afterwards",
    "test_faults_system.py::test_descriptors_and_memory_run_out",
)
_row(
    18,
    "a disk that hangs, a holder that is frozen, an engine that never opens",
    "reads show what is durable; others are refused at once; the engine is set aside after its deadline",
    "test_faults_system.py::test_a_disk_that_hangs_holds_up_what_must_be_durable_and_nothing_else",
    "test_faults_system.py::test_a_frozen_holder_holds_up_nobody",
    "test_faults_system.py::test_an_engine_that_hangs_at_open_is_set_aside",
)
_row(
    19,
    "upgrade: an older format, a newer one, a migration that is cut off",
    "older is migrated, resumably, or `format_too_old`; newer is `format_too_new`, and not a byte is touched",
    "test_explorer_store.py::test_no_image_of_a_copy_is_less_than_whole",
    "test_faults_input.py::test_a_newer_format_is_refused_untouched",
)
_row(
    21,
    "double sign: after a crash, from a copy, a restored backup, a second process, a lost record",
    "the same vote may leave again, another never; `fenced` or `safety_missing`",
    "test_faults_safety.py::test_no_vote_is_contradicted_after_a_power_cut",
    "test_faults_safety.py::test_a_copy_of_a_signer_does_not_sign",
)
_row(
    22,
    "backup, checkpoint and restore cut off, failing, damaged, onto something else",
    "listed copies are whole; the target is there whole or not at all; the next run ends well",
    "test_explorer_store.py::test_no_image_of_a_copy_is_less_than_whole",
    "test_copies_errors.py::test_an_error_at_every_operation_of_a_copy",
    "test_faults_input.py::test_damage_in_a_repository_is_found",
    "test_schedule_crash.py::test_a_scheduled_run_is_cut_at_every_operation",
    "test_objects_crash.py::test_a_backup_is_killed_at_every_request",
    "test_objects_crash.py::test_a_pruning_is_killed_at_every_request",
)
_row(
    23,
    "sizes at and beyond the limits",
    "`limit_exceeded` or `invalid_input` before anything is written; the same on every engine",
    "test_faults_input.py::test_limits_are_the_same_everywhere_and_refuse_before_anything_is_written",
)
_row(
    24,
    "names that climb out of a directory",
    "refused; nothing outside is touched",
    "test_faults_hostile.py::test_names_do_not_climb",
)
_row(
    25,
    "bombs: compressed, nested, of digits",
    "refused, within a few buffers of memory",
    "test_faults_hostile.py::test_bombs_do_not_explode",
)
_row(
    26,
    "texts that run code or confuse a reader",
    "no code runs; a typed error, or mended from the journal",
    "test_faults_hostile.py::test_no_text_runs_code_or_ends_untyped",
)
_row(
    27,
    "a forged snapshot of an untrusted peer",
    "refused; never a store",
    "test_faults_hostile.py::test_a_forged_snapshot_is_never_a_store",
)
_row(
    28,
    "forged proofs",
    "`proof_invalid`",
    "test_faults_hostile.py::test_a_forged_proof_proves_nothing",
)
LATER: dict[int, str] = {20: "partition, loss and heal between replicas: comes with consensus"}
"""Rows that no code of this version can meet."""


# -- what a test says ------------------------------------------------------------------------------------------------

_met: list[tuple[int, str, int]] = []


def met(row: int, count: int, what: str = "tried") -> None:
    """The fault of ``row`` was brought about ``count`` times by the running test; ``what`` names a share of them."""
    _met.append((row, what, count))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """What the test has met goes with its report."""
    _met.clear()
    try:
        return (yield)
    finally:
        item.user_properties.extend((_PROPERTY, list(each)) for each in _met)
        _met.clear()


# -- what a run says -------------------------------------------------------------------------------------------------


class Tally:
    """The counts of a run."""

    def __init__(self) -> None:
        self.counts: dict[int, Counter[str]] = {}
        self.by_test: Counter[tuple[int, str]] = Counter()
        self.failed: Counter[int] = Counter()
        self.skipped: dict[str, str] = {}
        self.strangers: set[str] = set()

    def add(self, nodeid: str, properties: list[tuple[str, Any]], outcome: str, reason: str = "") -> None:
        """The result of one test."""
        name = nodeid.partition("[")[0].removeprefix(CRASH)
        if outcome == "skipped":
            self.skipped[name] = reason
        for number, row in ROWS.items():
            if outcome == "failed" and name in row.tests:
                self.failed[number] += 1
        for title, value in properties:
            if title == _PROPERTY:
                number, what, count = value
                self.counts.setdefault(number, Counter())[what] += count
                self.by_test[number, name] += count
                if number not in ROWS or name not in ROWS[number].tests:
                    self.strangers.add(f"{name} met row {number}, which does not name it")

    def missed(self, *, whole: bool) -> list[str]:
        """What the run should have met and did not, and what it met although its row does not name it."""
        found = sorted(self.strangers)
        for number, row in sorted(ROWS.items()) if whole else ():
            for test in row.tests:
                if not self.by_test[number, test] and test not in self.skipped:
                    found.append(f"row {number}, {row.fault}: never met by {test}")
        return found

    def lines(self, *, whole: bool) -> list[str]:
        """The matrix in words; of a part of the tier only what it met."""
        lines = []
        for number, row in sorted(ROWS.items()):
            counts = self.counts.get(number, Counter())
            if not whole and not counts:
                continue
            more = ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items()) if what != "tried")
            failed = self.failed[number]
            told = f"{counts['tried']:,} tried, " + (f"{failed} TESTS FAILED" if failed else "0 wrong")
            lines.append(f"row {number:2} {row.fault}: {told}" + (f" ({more})" if more else ""))
        if whole:
            lines += [f"row {number:2} {why}" for number, why in sorted(LATER.items())]
        lines += [f"skipped: {name}: {reason}" for name, reason in sorted(self.skipped.items())]
        return lines


_TALLY = pytest.StashKey[Tally]()


def pytest_configure(config: pytest.Config) -> None:
    """A new tally."""
    tally = config.stash[_TALLY] = Tally()
    config.pluginmanager.register(_Listener(tally), "fault matrix")


class _Listener:
    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.nodeid.startswith(CRASH):
            return
        if report.when == "call" or report.skipped or report.failed:
            reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
            properties = report.user_properties if report.when == "call" else []
            self._tally.add(report.nodeid, properties, report.outcome, reason)


def is_whole(config: pytest.Config) -> bool:
    """True if the run is the whole tier: nothing was chosen but the mark."""
    option = config.option
    chosen = option.keyword or option.deselect or option.ignore or getattr(option, "lf", False)
    by_default = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    return option.markexpr == "crash" and by_default and not chosen and not option.collectonly


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A whole run that missed a fault has failed. Workers leave this to whom they work for."""
    config = session.config
    if hasattr(config, "workerinput") or session.exitstatus != pytest.ExitCode.OK:
        return
    if config.stash[_TALLY].missed(whole=is_whole(config)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The matrix is printed."""
    tally = config.stash[_TALLY]
    if not tally.counts:
        return
    terminalreporter.section("fault matrix")
    for line in tally.lines(whole=is_whole(config)):
        terminalreporter.write_line(line)
    for line in tally.missed(whole=is_whole(config)):
        terminalreporter.write_line(f"MISSED: {line}", red=True)
