"""``holdfast doctor``, and commands on a store that is damaged: what they repair, what they refuse, what they say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.cli_tools import child, done, holdfast
from tests.unit.backup_support import backup, repository, small_segments
from tests.unit.doctor_support import SEGMENT, backed_up, flip, store_of, truth
from tests.unit.store_support import open_quick

__all__ = ["small_segments"]

pytestmark = pytest.mark.usefixtures("small_segments")


def tip(path: Path) -> object:
    return done("tip", "-d", path, "--json").record["height"]


def test_a_sound_store_is_called_sound_and_nothing_is_done(tmp_path: Path) -> None:
    backed_up(tmp_path)
    before = truth(tmp_path)
    assert "sound in" in done("doctor", "-d", tmp_path).out
    report = done("doctor", "-d", tmp_path, "--json").record
    assert (report["sound"], report["plan"], report["others"]) == (True, None, [])
    assert done("doctor", "-d", tmp_path, "--apply", "--json").record == {"repaired": False}
    assert truth(tmp_path) == before


def test_a_dry_run_says_the_plan_and_apply_does_it(tmp_path: Path) -> None:
    backed_up(tmp_path)
    flip(tmp_path / SEGMENT, 700)
    before = truth(tmp_path)
    answer = holdfast("doctor", "-d", tmp_path)
    assert answer.code == 3
    assert f"replace {SEGMENT} from backup" in answer.out
    assert "loses nothing that was acknowledged" in answer.out
    assert "--apply'; so does the next open" in answer.out
    assert truth(tmp_path) == before
    said = done("doctor", "-d", tmp_path, "--apply").out
    assert "what was replaced lies in quarantine/repair-1" in said
    assert done("doctor", "-d", tmp_path).code == 0
    assert tip(tmp_path) == 59


def test_blocks_are_lost_only_where_it_is_asked_for(tmp_path: Path) -> None:
    blocks = store_of(tmp_path)
    (tmp_path / SEGMENT).unlink()
    before = truth(tmp_path)
    for words in (("doctor", "--apply"), ("tip",), ("verify",)):
        answer = holdfast(*words, "-d", tmp_path, "--json")
        assert answer.code == 3, answer
    assert "holdfast doctor" in str(holdfast("tip", "-d", tmp_path, "--json").error["remedy"])
    assert truth(tmp_path) == before
    looked = holdfast("doctor", "-d", tmp_path, "--json")
    others = looked.record["others"]
    assert isinstance(others, list)
    (plan,) = others
    loss = plan["loss"]
    assert loss["complete"] is True
    assert [each["hash"] for each in loss["names"]] == [block.hash.hex() for block in blocks[loss["from_height"] :]]
    people = holdfast("doctor", "-d", tmp_path).out
    assert f"LOSES {loss['blocks']} blocks, heights {loss['from_height']} to 59" in people
    assert "--apply --recover backup'" in people
    report = done("doctor", "-d", tmp_path, "--apply", "--recover", "backup", "--json").record
    assert report["repaired"] is True
    assert report["plan"] == plan
    assert tip(tmp_path) == plan["height"]


def test_the_setting_lets_a_command_that_writes_go_back_and_it_says_so(tmp_path: Path) -> None:
    store_of(tmp_path)
    (tmp_path / SEGMENT).unlink()
    (tmp_path / "config.toml").write_text('recovery = "backup"\n')
    assert holdfast("tip", "-d", tmp_path).code == 3, "a command that only looks loses nothing"
    answer = holdfast("prune", "-d", tmp_path)
    assert "warning: the store went back to height 7" in answer.err
    assert tip(tmp_path) == 7


def test_commands_mend_an_identity_and_a_segment_by_themselves(tmp_path: Path) -> None:
    backed_up(tmp_path)
    identity = (tmp_path / "holdfast.toml").read_bytes()
    (tmp_path / "holdfast.toml").unlink()
    assert child("tip", "-d", tmp_path).code == 0
    assert (tmp_path / "holdfast.toml").read_bytes() == identity
    (tmp_path / SEGMENT).unlink()
    assert tip(tmp_path) == 59


def test_the_repository_and_its_key_are_given_as_for_backups(tmp_path: Path) -> None:
    from holdfast.backup import BackupKey

    root, place = tmp_path / "store", tmp_path / "elsewhere"
    store_of(root)
    key = tmp_path / "key"
    key.write_text("ab" * 32 + "\n")
    backup(root, repository(place, key=BackupKey.from_file(key)))
    (root / SEGMENT).unlink()
    answer = holdfast("doctor", "-d", root, "-r", place)
    assert answer.code == 3
    assert "cannot be used" in answer.out
    assert holdfast("doctor", "-d", root, "-r", tmp_path / "nothing").code == 3
    done("doctor", "-d", root, "-r", place, "--key-file", key, "--apply")
    assert tip(root) == 59


def test_what_cannot_be_asked_for(tmp_path: Path) -> None:
    store_of(tmp_path / "s", 5)
    assert holdfast("doctor", "-d", tmp_path / "s", "--recover", "backup", "--json").error["code"] == "invalid_input"
    assert holdfast("doctor", "-d", tmp_path / "s", "--apply", "--recover", "all").code == 2
    assert holdfast("doctor", "-d", tmp_path / "nothing", "--json").error["code"] == "store_not_found"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("x")
    assert holdfast("doctor", "-d", tmp_path / "other", "--json").error["code"] == "store_not_found"
    with open_quick(tmp_path / "s"):
        assert holdfast("doctor", "-d", tmp_path / "s", "--json").error["code"] == "locked"


def test_damaged_views_are_named_and_are_no_matter(tmp_path: Path) -> None:
    store_of(tmp_path, 10)
    shutil.rmtree(tmp_path / "views/1/data")
    answer = holdfast("doctor", "-d", tmp_path)
    assert answer.code == 3
    assert "made anew by the next open" in answer.out
    assert "next: run 'holdfast rebuild" in answer.out
    assert tip(tmp_path) == 9
    assert done("doctor", "-d", tmp_path).code == 0
