"""One typed object for every setting, and where each value came from.

Invariants:
    * Later sources win: defaults < preset < file < ``HOLDFAST_*`` environment < explicit arguments.
    * Every source is checked whole, also the values that a later source hides. An unknown key, a wrong type or a value
      out of range is an ``InvalidInputError`` that names the key, the source and what is allowed; nothing is guessed.
    * A file is read once, is at most 1 MiB of UTF-8 and holds a flat table. YAML is reduced to plain values: no
      anchors, no aliases, no duplicate keys, no tags but the standard ones.
    * Nothing here writes, and nothing but the one file is opened.

The sources are merged here and not by ``pydantic-settings``, which neither reports where a value came from nor refuses
an unknown environment variable.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from . import limits
from ._fs import path_of
from .errors import InvalidInputError

__all__ = [
    "CONFIG_FILE_BYTES_MAX",
    "CONFIG_FILE_NAMES",
    "ENVIRONMENT_PREFIX",
    "PRESETS",
    "RESERVED_ENVIRONMENT",
    "LoadedSettings",
    "SettingInfo",
    "Settings",
    "describe_settings",
    "load_settings",
]

ENVIRONMENT_PREFIX: Final = "HOLDFAST_"
CONFIG_FILE_BYTES_MAX: Final = 1024 * 1024
CONFIG_LINE_CHARACTERS_MAX: Final = 1024
CONFIG_FILE_NAMES: Final = ("config.toml", "config.yaml", "config.yml")

RESERVED_ENVIRONMENT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "HOLDFAST_BACKUP_PASSPHRASE": "passphrase of an encrypted backup repository, where 'backup_key_file' is empty",
        "HOLDFAST_CRASH_ROUNDS": "rounds of each crash test (tests only)",
        "HOLDFAST_DATA_DIR": "the data directory, where a command is not given one",
        "HOLDFAST_FAILPOINT": "where a test lets the process die",
        "HOLDFAST_JSON": "1: the command line answers in JSON",
        "HOLDFAST_KEY_FILE": "key file of an encrypted store: 64 hex digits",
        "HOLDFAST_KERNEL_THREADS": "threads of the native kernel, 0 to 64; 0: as many as processors, at most 4",
        "HOLDFAST_PASSPHRASE": "passphrase of an encrypted store",
        "HOLDFAST_PURE": "1: the native kernel is not loaded",
        "HOLDFAST_SHARED_DATA": "directory of the real-chain recordings (tests only)",
    }
)
"""Variables with the prefix that are not settings. Any other unknown one is refused, so a typing error is noticed."""

_KIB: Final = 1024
_MIB: Final = 1024 * 1024
_GIB: Final = 1024 * 1024 * 1024


PRESETS: Final[Mapping[str, Mapping[str, object]]] = MappingProxyType(
    {
        "standard": MappingProxyType({}),
        "development": MappingProxyType({"state_cache_bytes": 4 * _MIB, "cache_bytes": 8 * _MIB}),
        "production": MappingProxyType(
            {
                "state_cache_bytes": 64 * _MIB,
                "cache_bytes": 256 * _MIB,
                "overlay_bytes_max": _GIB,
                "overlay_rows_max": 3_000_000,
                "flush_interval_seconds": 30.0,
            }
        ),
    }
)
"""Defaults that a preset replaces. With the overlay of ``production`` a burst of a million updates of keys that exist
meets no flush (a new key is two rows); the price is that so many rows are replayed when it is opened after a kill."""


class Settings(BaseModel):
    """Every setting of a store, each within its range. What is not given is that of the preset; never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        name = values.get("preset", "standard")
        return {**PRESETS[name], **values} if isinstance(name, str) and name in PRESETS else values

    preset: Annotated[
        Literal["standard", "development", "production"],
        Field(description="the defaults of memory: little on a laptop, or what a server of its own can give"),
    ] = "standard"
    engine: Annotated[
        Literal["rocksdb", "lmdb", "sqlite", "memory"],
        Field(description="engine under the views of a new store"),
    ] = "rocksdb"
    durability: Annotated[
        Literal["sync", "buffered"],
        Field(description="sync: a commit is durable when it returns; buffered: a prefix of the commits survives"),
    ] = "sync"
    group_commit_ms: Annotated[
        float, Field(ge=0, le=1000, description="how long a commit waits for others to share its sync, milliseconds")
    ] = 0.0
    buffered_sync_seconds: Annotated[
        float, Field(ge=0.001, le=3600, description="longest time between two syncs in buffered mode, seconds")
    ] = 1.0
    segment_bytes_max: Annotated[
        int, Field(ge=_MIB, le=limits.SEGMENT_BYTES_MAX, description="largest journal segment, bytes")
    ] = limits.SEGMENT_BYTES_MAX
    compression: Annotated[Literal["none", "zstd"], Field(description="how block bodies are kept in the journal")] = (
        "none"
    )
    compression_bytes_min: Annotated[
        int, Field(ge=0, le=limits.PART_BYTES_MAX, description="smaller bodies are not compressed, bytes")
    ] = 256
    max_reorg_depth: Annotated[
        int, Field(ge=0, le=1_000_000, description="deepest reorganisation; without finality deeper blocks are final")
    ] = 256
    proof_window_blocks: Annotated[
        int, Field(ge=0, le=10_000, description="blocks below the reorg floor whose old state can still be proven")
    ] = 256
    max_orphans: Annotated[
        int, Field(ge=0, le=100_000_000, description="orphaned blocks that the store keeps track of")
    ] = 10_000
    waiting_blocks_max: Annotated[
        int, Field(ge=0, le=1_000_000, description="blocks in memory whose parent is unknown")
    ] = 1_000
    waiting_bytes_max: Annotated[
        int, Field(ge=0, le=64 * _GIB, description="memory for blocks whose parent is unknown, bytes")
    ] = 64 * _MIB
    fork_choice: Annotated[
        Literal["chain", "heaviest", "longest", "manual"],
        Field(description="which branch is canonical; chain: as the chain says"),
    ] = "chain"
    overlay_bytes_max: Annotated[
        int, Field(ge=64 * _KIB, le=64 * _GIB, description="memory for rows not yet in the engine, bytes")
    ] = 64 * _MIB
    overlay_rows_max: Annotated[
        int, Field(ge=1, le=100_000_000, description="rows in memory that are not yet in the engine")
    ] = 150_000
    flush_interval_seconds: Annotated[
        float, Field(ge=0.01, le=3600, description="longest time before a row moves into the engine, seconds")
    ] = 5.0
    pinned_bytes_max: Annotated[
        int, Field(ge=64 * _KIB, le=64 * _GIB, description="memory that pinned readers may hold, bytes")
    ] = 64 * _MIB
    history: Annotated[
        Literal["on", "off"], Field(description="whether the state of old heights can be read, not only proven")
    ] = "on"
    history_blocks: Annotated[
        int, Field(ge=0, le=limits.HEIGHT_MAX, description="final heights whose state stays readable; 0: all")
    ] = 1_000
    history_every: Annotated[
        int, Field(ge=0, le=limits.HEIGHT_MAX, description="below them every so many-th height stays readable; 0: none")
    ] = 0
    journal_retention: Annotated[
        Literal["none", "blocks", "days", "space"],
        Field(description="which bodies and extras stay in the journal, once a backup holds the others; none: all"),
    ] = "none"
    journal_retention_amount: Annotated[
        int,
        Field(
            ge=0, le=limits.HEIGHT_MAX, description="how many final blocks, days (by the chain's time) or bytes that is"
        ),
    ] = 0
    compact: Annotated[
        Literal["off", "on"],
        Field(description="whether an open store compacts sealed segments of its journal in the background"),
    ] = "off"
    checkpoint_interval: Annotated[
        int, Field(ge=0, le=1_000_000_000, description="final blocks from one checkpoint to the next; 0: none are made")
    ] = 1_000
    checkpoints_max: Annotated[int, Field(ge=1, le=10_000, description="newest checkpoints that are kept")] = 3
    checkpoints_every: Annotated[
        int,
        Field(
            ge=0, le=limits.HEIGHT_MAX, description="and the first one from each multiple of so many blocks on; 0: none"
        ),
    ] = 10_000
    max_backups: Annotated[
        int, Field(ge=0, le=1_000_000, description="newest verified backups that pruning keeps, besides other rules")
    ] = 10
    backup_target: Annotated[
        str,
        Field(
            max_length=limits.BACKUP_TARGET_CHARACTERS_MAX,
            description="directory or URL of the backup repository; relative: below the data; empty: its 'backups'",
        ),
    ] = ""
    backup_key_file: Annotated[
        str,
        Field(
            max_length=limits.BACKUP_TARGET_CHARACTERS_MAX,
            description="key file of an encrypted backup repository; relative: below the data; empty: none",
        ),
    ] = ""
    recovery: Annotated[
        Literal["lossless", "backup", "checkpoint"],
        Field(description="how far an open may go back by itself where the journal cannot be made whole; else refused"),
    ] = "lossless"
    backup_schedule: Annotated[
        str,
        Field(
            max_length=limits.BACKUP_SCHEDULE_CHARACTERS_MAX,
            description="when backups are made, in UTC, such as 'daily 03:00' or '0 3 * * *'; empty: by no schedule",
        ),
    ] = ""
    backup_test_restore: Annotated[
        bool, Field(description="each scheduled backup is restored beside the store, compared and deleted")
    ] = True
    backup_keep_days: Annotated[
        int, Field(ge=0, le=100_000, description="pruning also keeps verified backups of so many days")
    ] = 0
    backup_keep_hourly: Annotated[
        int, Field(ge=0, le=1_000_000, description="and the newest of each of so many hours")
    ] = 0
    backup_keep_daily: Annotated[
        int, Field(ge=0, le=1_000_000, description="and the newest of each of so many days")
    ] = 0
    backup_keep_weekly: Annotated[
        int, Field(ge=0, le=1_000_000, description="and the newest of each of so many weeks")
    ] = 0
    backup_keep_monthly: Annotated[
        int, Field(ge=0, le=1_000_000, description="and the newest of each of so many months")
    ] = 0
    tree_bytes_max: Annotated[
        int, Field(ge=_MIB, le=1024 * _GIB, description="memory for the tree over the state, bytes")
    ] = 4 * _GIB
    disk_reserve_bytes: Annotated[
        int,
        Field(ge=0, le=1024 * _GIB, description="free space that blocks leave alone, bytes; at most 5 % of the disk"),
    ] = 128 * _MIB
    cache_bytes: Annotated[int, Field(ge=0, le=1024 * _GIB, description="block cache of the engine, bytes")] = 32 * _MIB
    state_cache_bytes: Annotated[
        int,
        Field(ge=0, le=1024 * _GIB, description="cache of state rows, bytes; 0: off"),
    ] = 16 * _MIB
    state_cache_policy: Annotated[
        Literal["lru", "lfu", "fifo"], Field(description="which row leaves a full cache of state rows first")
    ] = "lru"
    state_cache_stats: Annotated[bool, Field(description="hits and misses of the cache of state rows are counted")] = (
        True
    )
    index_rows_per_block_max: Annotated[
        int,
        Field(ge=1, le=limits.INDEX_ROWS_PER_BLOCK_MAX, description="rows that one index may give for one block"),
    ] = limits.INDEX_ROWS_PER_BLOCK_MAX
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"],
        Field(description="least level that the commands log to stderr, once it is set; programs configure logging"),
    ] = "warning"


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings, and for each key its source.

    A source is ``default``, ``preset NAME``, ``file PATH``, ``environment HOLDFAST_X`` or ``argument``.
    """

    settings: Settings
    sources: Mapping[str, str]
    path: Path | None
    """The file that was read, if any."""


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """What an operator may know about a setting: its key, default, allowed values, variable and meaning."""

    key: str
    default: str | int | float
    allowed: str
    variable: str
    description: str


def load_settings(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> LoadedSettings:
    """The settings that hold, merged from all sources.

    Args:
        data_dir: where ``config.toml`` (or ``.yaml``, ``.yml``; at most one of them) is looked for.
        config: a file to read instead; it must exist.
        environ: variables; the environment of the process if ``None``.
        overrides: explicit arguments by key; a value of ``None`` means "not given".
    Raises:
        InvalidInputError: a source is unreadable, or holds an unknown key or a value that is not allowed.
    """
    place = None if data_dir is None else path_of(data_dir, "the directory of a store")
    path = _find_file(place) if config is None else path_of(config, "a settings file")
    layers: list[tuple[dict[str, object], dict[str, str]]] = []
    if path is not None:
        values = _read_file(path)
        layers.append((values, dict.fromkeys(values, f"file {path}")))
    layers.append(_read_environment(os.environ if environ is None else environ))
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    layers.append((given, dict.fromkeys(given, "argument")))

    merged: dict[str, object] = {}
    sources = dict.fromkeys(Settings.model_fields, "default")
    for values, origins in layers:
        _check_layer(values, origins)
        merged.update(values)
        sources.update(origins)
    preset = str(merged.get("preset", "standard"))
    for key in PRESETS[preset].keys() - merged.keys():
        sources[key] = f"preset {preset}"
    return LoadedSettings(Settings.model_validate(merged), MappingProxyType(sources), path)


def describe_settings() -> list[SettingInfo]:
    """Every setting in the order of ``Settings``; ``docs/OPERATIONS.md`` shows the same."""
    return [
        SettingInfo(key, field.default, _allowed(key), ENVIRONMENT_PREFIX + key.upper(), field.description or "")
        for key, field in Settings.model_fields.items()
    ]


# -- checks ------------------------------------------------------------------------------------------------------


def _check_layer(values: Mapping[str, object], origins: Mapping[str, str]) -> None:
    for key in values:
        if key not in Settings.model_fields:
            raise _unknown(key, origins.get(key, "argument"), list(Settings.model_fields))
    try:
        Settings.model_validate(dict(values))
    except ValidationError as error:
        key = str(error.errors(include_url=False, include_input=False)[0]["loc"][0])
        raise InvalidInputError(
            f"the setting {key!r} is not allowed to be {_show(values[key])}; allowed: {_allowed(key)}",
            key=key,
            source=origins[key],
            remedy=f"set {key!r} to {_allowed(key)}, or leave it out for its default",
        ) from error


def _unknown(name: object, source: str, known: list[str]) -> InvalidInputError:
    near = difflib.get_close_matches(str(name)[:64], known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InvalidInputError(
        f"unknown setting {_show(name)}{hint}",
        key=ascii(name)[:80],
        source=source,
        remedy="'holdfast config show' lists every setting",
    )


def _show(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _allowed(key: str) -> str:
    schema = Settings.model_json_schema()["properties"][key]
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    if schema["type"] == "boolean":
        return "true or false"
    if schema["type"] == "string":
        return f"text of at most {schema['maxLength']:,} characters"
    kind = "a whole number" if schema["type"] == "integer" else "a number"
    return f"{kind} from {schema['minimum']:,} to {schema['maximum']:,}"


# -- environment -------------------------------------------------------------------------------------------------

_NUMBER_CHARACTERS_MAX: Final = 40
_INTEGER: Final = re.compile(r"[+-]?[0-9]+(_[0-9]+)*", re.ASCII)
_BOOLEANS: Final = {"true": True, "false": False}
_DECIMAL: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)


def _read_environment(environ: Mapping[str, str]) -> tuple[dict[str, object], dict[str, str]]:
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    variables = {ENVIRONMENT_PREFIX + key.upper(): key for key in Settings.model_fields}
    for name in sorted(environ):
        if not name.startswith(ENVIRONMENT_PREFIX) or name in RESERVED_ENVIRONMENT:
            continue
        if name not in variables:
            raise _unknown(name, f"environment {_show(name)}", [*variables, *RESERVED_ENVIRONMENT])
        key = variables[name]
        values[key] = _from_text(environ[name], Settings.model_fields[key].annotation)
        origins[key] = f"environment {name}"
    return values, origins


def _from_text(text: str, kind: object) -> object:
    """The value that ``text`` spells for a setting of this type; text that spells none stays text and is refused."""
    if len(text) > _NUMBER_CHARACTERS_MAX:
        return text
    if kind is int and _INTEGER.fullmatch(text):
        return int(text)
    if kind is float and _DECIMAL.fullmatch(text):
        return float(text)
    if kind is bool and text in _BOOLEANS:
        return _BOOLEANS[text]
    return text


# -- file --------------------------------------------------------------------------------------------------------


def _find_file(data_dir: Path | None) -> Path | None:
    if data_dir is None:
        return None
    found = [data_dir / name for name in CONFIG_FILE_NAMES if os.path.lexists(data_dir / name)]
    if len(found) > 1:
        raise InvalidInputError(
            "more than one settings file",
            found=", ".join(path.name for path in found),
            path=str(data_dir),
            remedy="keep one of them, or name it with --config",
        )
    return found[0] if found else None


def _read_file(path: Path) -> dict[str, object]:
    if path.suffix not in (".toml", ".yaml", ".yml"):
        raise _bad_file(path, "the name of a settings file ends in .toml, .yaml or .yml")
    text = _read_text(path)
    try:
        content: object = tomllib.loads(text) if path.suffix == ".toml" else _parse_yaml(text)
    except yaml.YAMLError as error:
        raise _bad_file(path, f"not valid YAML: {_one_line(error)}") from error
    except ValueError as error:
        raise _bad_file(path, f"not valid {path.suffix[1:].upper()}: {_one_line(error)}") from error
    except RecursionError as error:
        raise _bad_file(path, "nested too deeply") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise _bad_file(path, f"expected a table of settings, found {type(content).__name__}")
    values: dict[str, object] = {}
    for key, value in content.items():
        if not isinstance(key, str):
            raise _unknown(key, f"file {path}", list(Settings.model_fields))
        values[key] = value
    return values


def _read_text(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise _bad_file(path, "not a regular file")
        with path.open("rb") as file:
            raw = file.read(CONFIG_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise _bad_file(path, f"cannot be read: {error.strerror}") from error
    if len(raw) > CONFIG_FILE_BYTES_MAX:
        raise _bad_file(path, f"larger than {CONFIG_FILE_BYTES_MAX} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad_file(path, f"not UTF-8 at byte {error.start}") from error
    if any(len(line) > CONFIG_LINE_CHARACTERS_MAX for line in text.split("\n")):
        raise _bad_file(path, f"a line is longer than {CONFIG_LINE_CHARACTERS_MAX} characters")
    return text


def _bad_file(path: Path, reason: str) -> InvalidInputError:
    return InvalidInputError(
        f"the settings file is not usable: {reason}", path=str(path), remedy="correct the file named above"
    )


def _one_line(error: Exception) -> str:
    return " ".join(ascii(str(error))[1:-1].replace("\\n", " ").split())[:200]


class _PlainLoader(yaml.SafeLoader):
    """A safe loader without aliases, duplicate keys, and numbers that YAML 1.1 reads as octal or in sixties."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise yaml.YAMLError(f"anchors and aliases are not allowed ({_line(event)})")
        node: yaml.Node | None = super().compose_node(parent, index)
        if isinstance(node, yaml.ScalarNode) and node.tag in _YAML_NUMBERS and not _YAML_PLAIN.fullmatch(node.value):
            raise yaml.YAMLError(f"write the number {node.value[:64]!r} in plain decimal digits ({_line(node)})")
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, _ in node.value:
                name = str(key.value)
                if name in seen or name == "<<":
                    what = "merge key" if name == "<<" else "duplicate key"
                    raise yaml.YAMLError(f"{what} {name[:64]!r} ({_line(key)})")
                seen.add(name)
        return node


_YAML_NUMBERS: Final = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_YAML_PLAIN: Final = re.compile(r"[+-]?(0|[1-9][0-9_]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|[+-]?\.(inf|nan)", re.ASCII)


def _line(place: yaml.Event | yaml.Node) -> str:
    mark = place.start_mark
    return f"line {mark.line + 1}" if mark is not None else "line unknown"


def _parse_yaml(text: str) -> object:
    loader = _PlainLoader(text)
    try:
        content: object = loader.get_single_data()
    finally:
        loader.dispose()
    return content
