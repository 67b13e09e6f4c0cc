"""Settings: every source, every refusal, and where a value came from."""

from __future__ import annotations

import os
import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import holdfast
from holdfast import limits
from holdfast.config import (
    CONFIG_FILE_BYTES_MAX,
    PRESETS,
    RESERVED_ENVIRONMENT,
    LoadedSettings,
    Settings,
    describe_settings,
    load_settings,
)
from holdfast.errors import InvalidInputError


def load(text: str | bytes, directory: Path, name: str = "settings.toml") -> LoadedSettings:
    path = directory / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_settings(config=path, environ={})


def refused(text: str | bytes, directory: Path, name: str = "settings.toml") -> InvalidInputError:
    with pytest.raises(InvalidInputError) as caught:
        load(text, directory, name)
    return caught.value


def test_defaults_hold_without_any_source(tmp_path: Path) -> None:
    loaded = load_settings(tmp_path, environ={})
    assert loaded.settings == Settings()
    assert loaded.path is None
    assert set(loaded.sources) == set(Settings.model_fields)
    assert set(loaded.sources.values()) == {"default"}


@pytest.mark.parametrize(("preset", "cache"), [("standard", 16), ("development", 4), ("production", 64)])
def test_a_preset_replaces_defaults(preset: str, cache: int) -> None:
    loaded = load_settings(environ={"HOLDFAST_PRESET": preset})
    assert loaded.settings.preset == preset
    assert loaded.settings.state_cache_bytes == cache * 1024 * 1024
    changed = {key for key, value in Settings() if value != getattr(loaded.settings, key)} - {"preset"}
    assert changed == set(PRESETS[preset])
    assert {key for key, source in loaded.sources.items() if source == f"preset {preset}"} == changed
    assert Settings.model_validate({"preset": preset}) == loaded.settings


def test_every_source_wins_over_a_preset(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('preset = "production"\nstate_cache_bytes = 1\n')
    loaded = load_settings(tmp_path, environ={"HOLDFAST_CACHE_BYTES": "2"}, overrides={"overlay_rows_max": 3})
    settings = loaded.settings
    assert (settings.state_cache_bytes, settings.cache_bytes, settings.overlay_rows_max) == (1, 2, 3)
    assert settings.overlay_bytes_max == 1 << 30
    assert loaded.sources["overlay_bytes_max"] == "preset production"
    assert loaded.sources["state_cache_bytes"].startswith("file ")
    assert load_settings(tmp_path, environ={}, overrides={"preset": "development"}).settings.cache_bytes == 8 << 20


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(InvalidInputError) as caught:
        load_settings(environ={"HOLDFAST_PRESET": "fast"})
    assert caught.value.context["key"] == "preset"


def test_the_published_defaults() -> None:
    assert Settings().model_dump() == {
        "preset": "standard",
        "engine": "rocksdb",
        "durability": "sync",
        "group_commit_ms": 0.0,
        "buffered_sync_seconds": 1.0,
        "segment_bytes_max": 64 * 1024 * 1024,
        "compression": "none",
        "compression_bytes_min": 256,
        "max_reorg_depth": 256,
        "proof_window_blocks": 256,
        "max_orphans": 10_000,
        "waiting_blocks_max": 1_000,
        "waiting_bytes_max": 64 * 1024 * 1024,
        "fork_choice": "chain",
        "overlay_bytes_max": 64 * 1024 * 1024,
        "overlay_rows_max": 150_000,
        "flush_interval_seconds": 5.0,
        "pinned_bytes_max": 64 * 1024 * 1024,
        "history": "on",
        "history_blocks": 1_000,
        "history_every": 0,
        "journal_retention": "none",
        "journal_retention_amount": 0,
        "compact": "off",
        "checkpoint_interval": 1_000,
        "checkpoints_max": 3,
        "checkpoints_every": 10_000,
        "max_backups": 10,
        "backup_target": "",
        "backup_key_file": "",
        "backup_schedule": "",
        "backup_test_restore": True,
        "backup_keep_days": 0,
        "backup_keep_hourly": 0,
        "backup_keep_daily": 0,
        "backup_keep_weekly": 0,
        "backup_keep_monthly": 0,
        "recovery": "lossless",
        "tree_bytes_max": 4 * 1024 * 1024 * 1024,
        "disk_reserve_bytes": 128 * 1024 * 1024,
        "cache_bytes": 32 * 1024 * 1024,
        "state_cache_bytes": 16 * 1024 * 1024,
        "state_cache_policy": "lru",
        "state_cache_stats": True,
        "index_rows_per_block_max": 100_000,
        "log_level": "warning",
    }


def test_later_sources_win_and_are_named(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('max_reorg_depth = 10\nmax_orphans = 20\nengine = "lmdb"\n')
    loaded = load_settings(
        tmp_path,
        environ={"HOLDFAST_MAX_ORPHANS": "30", "HOLDFAST_ENGINE": "sqlite", "PATH": "/bin"},
        overrides={"engine": "memory", "durability": None},
    )
    assert (loaded.settings.max_reorg_depth, loaded.settings.max_orphans, loaded.settings.engine) == (10, 30, "memory")
    assert loaded.sources["max_reorg_depth"] == f"file {file}"
    assert loaded.sources["max_orphans"] == "environment HOLDFAST_MAX_ORPHANS"
    assert loaded.sources["engine"] == "argument"
    assert loaded.sources["durability"] == "default"
    assert loaded.path == file


def test_an_explicit_file_replaces_the_one_in_the_data_directory(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("max_orphans = 1\n")
    other = tmp_path / "other.yaml"
    other.write_text("max_reorg_depth: 2\n")
    loaded = load_settings(tmp_path, config=other, environ={})
    assert (loaded.settings.max_orphans, loaded.settings.max_reorg_depth) == (10_000, 2)


@pytest.mark.parametrize("name", ["config.yaml", "config.yml"])
def test_yaml_in_the_data_directory_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("compression: none\ncache_bytes: 0\nfork_choice: longest\nflush_interval_seconds: 1\n")
    settings = load_settings(tmp_path, environ={}).settings
    assert (settings.compression, settings.cache_bytes, settings.fork_choice) == ("none", 0, "longest")
    assert settings.flush_interval_seconds == 1.0


def test_two_files_in_the_data_directory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "config.yml").write_text("")
    with pytest.raises(InvalidInputError, match=r"more than one settings file .*config\.toml, config\.yml"):
        load_settings(tmp_path, environ={})


def test_empty_files_and_comments_change_nothing(tmp_path: Path) -> None:
    for name, text in (("a.toml", ""), ("b.toml", "# nothing\n"), ("c.yaml", ""), ("d.yml", "# nothing\n---\n")):
        assert load(text, tmp_path, name).settings == Settings()


@pytest.mark.parametrize("info", describe_settings(), ids=lambda info: info.key)
def test_each_setting_holds_its_limits(info: object, tmp_path: Path) -> None:
    key = str(info.key)  # type: ignore[attr-defined]
    schema = Settings.model_json_schema()["properties"][key]
    variable = "HOLDFAST_" + key.upper()
    if "enum" in schema:
        good, bad = schema["enum"], ["", "nonsense", schema["enum"][0].upper(), schema["enum"][0] + " "]
    elif schema["type"] == "boolean":
        good, bad = [True, False], ["", "yes", "TRUE", "1", "true ", "on"]
    elif schema["type"] == "string":
        good, bad = ["", "/mnt/backups", "7", "x" * schema["maxLength"]], ["x" * (schema["maxLength"] + 1)]
    else:
        low, high = schema["minimum"], schema["maximum"]
        good, bad = [low, high], [low - 1, high + 1, "", "x", "nan", "inf", "1e400", "0x10", " 1", "9" * 50, "9" * 5000]
    for value in good:
        for loaded in (
            load_settings(environ={variable: str(value).lower()}),
            load_settings(environ={}, overrides={key: value}),
        ):
            assert getattr(loaded.settings, key) == value
    for value in bad:
        with pytest.raises(InvalidInputError) as caught:
            load_settings(environ={variable: str(value)})
        assert caught.value.context == {"key": key, "source": f"environment {variable}"}
        assert info.allowed in caught.value.message  # type: ignore[attr-defined]
        with pytest.raises(InvalidInputError) as caught:
            load_settings(environ={}, overrides={key: value})
        assert caught.value.context == {"key": key, "source": "argument"}


@pytest.mark.parametrize("value", [True, 1.5, "5", b"5", [5], {"a": 5}, object()])
def test_an_argument_of_the_wrong_type_is_refused(value: object) -> None:
    with pytest.raises(InvalidInputError, match="max_orphans"):
        load_settings(environ={}, overrides={"max_orphans": value})


def test_the_environment_may_group_digits_and_write_decimals() -> None:
    environ = {"HOLDFAST_MAX_ORPHANS": "1_000_000", "HOLDFAST_FLUSH_INTERVAL_SECONDS": "2.5e0"}
    settings = load_settings(environ=environ).settings
    assert (settings.max_orphans, settings.flush_interval_seconds) == (1_000_000, 2.5)


def test_a_number_with_a_fraction_is_no_whole_number() -> None:
    with pytest.raises(InvalidInputError, match="a whole number from 0 to 1,000,000"):
        load_settings(environ={"HOLDFAST_MAX_REORG_DEPTH": "5.0"})


def test_an_unknown_variable_is_refused_with_a_hint() -> None:
    with pytest.raises(InvalidInputError, match="did you mean 'HOLDFAST_MAX_ORPHANS'") as caught:
        load_settings(environ={"HOLDFAST_MAX_ORPHAN": "1"})
    assert caught.value.context["source"] == "environment 'HOLDFAST_MAX_ORPHAN'"


def test_reserved_and_foreign_variables_are_left_alone() -> None:
    environ = dict.fromkeys(RESERVED_ENVIRONMENT, "anything") | {"holdfast_engine": "x", "XHOLDFAST_Y": "x"}
    assert load_settings(environ=environ).settings == Settings()


def test_reserved_names_are_no_settings() -> None:
    assert not set(RESERVED_ENVIRONMENT) & {info.variable for info in describe_settings()}


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_MAX_ORPHANS", "7")
    assert load_settings().settings.max_orphans == 7


def test_a_hidden_bad_value_is_refused_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("max_orphans = -1\n")
    with pytest.raises(InvalidInputError, match="max_orphans"):
        load_settings(tmp_path, environ={"HOLDFAST_MAX_ORPHANS": "1"})


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="unknown setting 'colour'"):
        load_settings(environ={}, overrides={"colour": 1})


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.toml", "max_orphan = 1", "did you mean 'max_orphans'"),
        ("a.toml", "max_orphans = 1\nmax_orphans = 2", "not valid TOML"),
        ("a.toml", "max_orphans = ", "not valid TOML"),
        ("a.toml", 'max_orphans = "1"', "allowed: a whole number from 0 to 100,000,000"),
        ("a.toml", "max_orphans = true", "allowed: a whole number"),
        ("a.toml", "max_orphans = 1.0", "allowed: a whole number"),
        ("a.toml", f"max_orphans = {'9' * 500}", "allowed: a whole number"),
        ("a.toml", "group_commit_ms = nan", "allowed: a number from 0"),
        ("a.toml", "group_commit_ms = inf", "allowed: a number from 0"),
        ("a.toml", f"group_commit_ms = {'9' * 500}", "allowed: a number from 0"),
        ("a.toml", "group_commit_ms = true", "allowed: a number from 0"),
        ("a.toml", "[engine]\nname = 1", "allowed: one of rocksdb, lmdb"),
        ("a.toml", "[store]\nengine = 'lmdb'", "unknown setting 'store'"),
        ("a.toml", "a = " + "[" * 1000, "not usable"),
        ("a.toml", "a" * 2000, "a line is longer than 1024 characters"),
        ("a.toml", b"\xff\xfe", "not UTF-8 at byte 0"),
        ("a.toml", "engine = 'lmdb'\x00", "not valid TOML"),
        ("a.toml", "\ufeffengine = 'lmdb'", "not valid TOML"),
        ("a.toml", "#" * 1000 + "\n" + "# x\n" * CONFIG_FILE_BYTES_MAX, "larger than 1048576 bytes"),
        ("a.json", "{}", "ends in .toml, .yaml or .yml"),
        ("a.yaml", "max_orphans: 1\nmax_orphans: 1", "duplicate key 'max_orphans' .line 2"),
        ("a.yaml", "max_orphans: &a 1", "anchors and aliases are not allowed .line 1"),
        ("a.yaml", "a: &a [x]\nb: *a", "anchors and aliases are not allowed"),
        ("a.yaml", "a: *a", "anchors and aliases are not allowed"),
        ("a.yaml", "<<: {engine: lmdb}", "merge key"),
        ("a.yaml", "engine: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("a.yaml", "engine: !mine x", "not valid YAML"),
        ("a.yaml", "? [a]\n: 1", "not valid YAML|unknown setting"),
        ("a.yaml", "1: 2", "unknown setting 1"),
        ("a.yaml", "- engine", "expected a table of settings, found list"),
        ("a.yaml", "engine", "expected a table of settings, found str"),
        ("a.yaml", "engine: lmdb\n---\nengine: lmdb", "not valid YAML"),
        ("a.yaml", "engine: [", "not valid YAML"),
        ("a.yaml", "engine:", "allowed: one of rocksdb"),
        ("a.yaml", "max_orphans: 1:30", "write the number '1:30' in plain decimal digits .line 1"),
        ("a.yaml", "max_orphans: 010", "in plain decimal digits"),
        ("a.yaml", "group_commit_ms: .nan", "allowed: a number from 0"),
        ("a.yaml", f"max_orphans: {'9' * 900}", "allowed: a whole number"),
        ("a.yaml", "max_orphans: 2001-99-99", "not valid YAML"),
        ("a.yaml", "[" * 1000, "not usable"),
        ("a.yaml", "engine: 'lmdb\x00'", "not valid YAML"),
        ("a.yaml", "engine: \u202e", "allowed: one of rocksdb"),
    ],
)
def test_a_bad_file_is_refused(name: str, text: str | bytes, reason: str, tmp_path: Path) -> None:
    error = refused(text, tmp_path, name)
    assert re.search(reason, str(error)), str(error)
    assert str(tmp_path / name) in str(error)
    assert str(error).isascii()


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe.toml"
    os.mkfifo(fifo)
    loop = tmp_path / "loop.toml"
    loop.symlink_to(loop)
    directory = tmp_path / "directory.toml"
    directory.mkdir()
    for path in (fifo, loop, directory, tmp_path / "absent.toml"):
        with pytest.raises(InvalidInputError, match="the settings file is not usable") as caught:
            load_settings(config=path, environ={})
        assert caught.value.context["path"] == str(path)


def test_a_broken_link_in_the_data_directory_is_not_taken_for_absence(tmp_path: Path) -> None:
    (tmp_path / "config.toml").symlink_to(tmp_path / "gone")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_settings(tmp_path, environ={})


@pytest.mark.parametrize("name", ["a.toml", "a.yaml"])
@given(raw=st.one_of(st.binary(max_size=60), st.text(alphabet="ae:=[]{}\"'#\n -_1&*!?|>%@`.,", max_size=60)))
def test_any_bytes_load_or_are_refused(name: str, raw: bytes | str, tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        loaded = load(raw, tmp_path_factory.getbasetemp(), name)
    except InvalidInputError:
        return
    assert loaded.settings == Settings()


LETTERS = "ADEGINOX_019.-+ e\x00\xe9\u0661\ud800"


@given(name=st.text(LETTERS, max_size=12), value=st.text(LETTERS, max_size=12))
def test_any_variable_loads_or_is_refused(name: str, value: str) -> None:
    try:
        loaded = load_settings(environ={f"HOLDFAST_{name}": value})
    except InvalidInputError:
        return
    assert loaded.settings == Settings() or loaded.sources[name.lower()] == f"environment HOLDFAST_{name}"


def test_a_hostile_file_costs_little_memory(tmp_path: Path) -> None:
    text = "\n".join(["a" + ".a" * 500 + f".b{index} = 1" for index in range(30)])
    tracemalloc.start()
    try:
        refused(text, tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 * 1024 * 1024


def test_settings_never_change() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.engine = "lmdb"


def test_settings_never_raise_a_fixed_limit() -> None:
    properties = Settings.model_json_schema()["properties"]
    assert properties["segment_bytes_max"]["maximum"] == limits.SEGMENT_BYTES_MAX
    assert properties["index_rows_per_block_max"]["maximum"] == limits.INDEX_ROWS_PER_BLOCK_MAX
    assert properties["compression_bytes_min"]["maximum"] == limits.PART_BYTES_MAX


def test_each_setting_is_described() -> None:
    for info in describe_settings():
        assert info.description
        assert info.variable == "HOLDFAST_" + info.key.upper()
        words = ("one of ", "a whole number from ", "a number from ", "true or false", "text of at most ")
        assert info.allowed.startswith(words)


def test_a_program_reads_file_and_environment_as_the_commands_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text("overlay_rows_max = 77\n")
    monkeypatch.setenv("HOLDFAST_PRESET", "development")
    settings = holdfast.load_settings(tmp_path).settings
    with holdfast.open(f"sqlite:{tmp_path}", settings=settings) as store:
        assert store.statistics()["state_cache"]["budget_bytes"] == 4 << 20  # type: ignore[index]
    assert settings.overlay_rows_max == 77
