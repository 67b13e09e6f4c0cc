"""Opening stores for commands.

Invariants:
    * The chain of an existing store is read from its identity before anything is opened for writing.
    * Only commands that say so create a store.
    * A command that only reads opens the store read-only: it sees what is durable, also while another process writes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import (
    CorruptionError,
    ForeignStore,
    HoldfastError,
    InvalidInputError,
    ReadOnlyError,
    StoreLocked,
    StoreNotFound,
)
from ..limits import HASH_BYTES
from .logs import log_as_asked
from .progress import Progress, StopSignals

if TYPE_CHECKING:
    from ..config import Settings
    from ..contracts import ContractRegistry
    from ..store.chain import Chain, ChainSpec
    from ..store.identity import Identity
    from ..store.store import Store
    from .output import Output

__all__ = [
    "create_or_open",
    "find_identity",
    "load",
    "open_to_read",
    "open_to_write",
    "show_hashes",
    "store_at_work",
    "store_key",
    "tell_recovery",
]


_opened: ContextVar[str] = ContextVar("opened", default="")

_NOTHING_ASIDE = {"history_blocks": 0, "compact": "off", "checkpoint_interval": 0}
_HASH_NAMES = frozenset({"hash", "parent", "missing_parent", "competing", "fork", "tip", "to"})


def show_hashes(error: HoldfastError) -> HoldfastError:
    """``error`` names blocks as people know them on the chain that this command works with."""
    from .chains import display_hash

    name = _opened.get()
    for key, value in error.context.items():
        if key in _HASH_NAMES and isinstance(value, bytes) and len(value) == HASH_BYTES:
            error.context[key] = display_hash(name, value)
    return error


def store_key(key_file: Path | None, passphrase_file: Path | None) -> AbstractContextManager[None]:
    """Inside, encrypted stores are opened with the key that was given, if any; it is never an argument itself."""
    from .._keys import StoreKey, using_key

    text = os.environ.get("HOLDFAST_PASSPHRASE")
    if sum(map(bool, (key_file, passphrase_file, text))) > 1:
        raise InvalidInputError(
            "a store has a key file or a passphrase, not both",
            remedy="give one of --store-key-file and --store-passphrase-file; the environment counts too",
        )
    if key_file is not None:
        return using_key(StoreKey.from_file(key_file))
    if passphrase_file is not None:
        return using_key(StoreKey.from_passphrase_file(passphrase_file))
    return using_key(StoreKey.from_passphrase(text) if text else None)


def load(data_dir: Path, config: Path | None, overrides: Mapping[str, object] | None = None) -> Settings:
    """The settings in force for the store in ``data_dir``; log events appear as they ask."""
    from ..config import load_settings

    loaded = load_settings(data_dir, config=config, overrides=overrides)
    log_as_asked(loaded)
    return loaded.settings


def find_identity(data_dir: Path, *, mend: bool = True) -> Identity | None:
    """Who the store in ``data_dir`` is; ``None`` if the directory is missing or empty. Other contents raise.

    An identity that is damaged or gone is repaired as an open would, if ``mend`` and where nothing is lost by it.
    """
    from .._fs import RealFileSystem
    from ..store.opening import read_identity

    fs = RealFileSystem()
    try:
        identity = _mended(data_dir, lambda: read_identity(fs, data_dir)) if mend else read_identity(fs, data_dir)
    except StoreNotFound:
        return None
    _opened.set(identity.spec.name)
    return identity


def _mended(data_dir: Path, call: Callable[[], Identity]) -> Identity:
    try:
        return call()
    except CorruptionError as damage:
        from ..config import load_settings
        from ..doctor.ladder import recovered

        try:
            return recovered(lambda _: call(), data_dir.absolute(), load_settings(data_dir).settings)
        except (StoreLocked, ReadOnlyError):
            raise damage from None


def _identity(data_dir: Path) -> Identity:
    found = find_identity(data_dir)
    if found is None:
        raise StoreNotFound("there is no store here", path=data_dir)
    return found


def _spec_of(data_dir: Path, chain: str | None) -> ChainSpec:
    """What the store's identity says of its chain, which is of the kind ``chain``."""
    spec = _identity(data_dir).spec
    if chain is not None and spec.name != chain:
        raise ForeignStore("the store holds another kind of chain", path=data_dir, found=spec.name, expected=chain)
    return spec


@contextmanager
def _recovering(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Shows how far the replay of the journal is, where it takes long."""
    with Progress("recovering", None, unit="frames", quiet=quiet, last_line=False) as progress:
        yield lambda done, total: progress.stage("recovering", done, total)


def open_to_read(
    data_dir: Path,
    config: Path | None = None,
    *,
    chain: str | None = None,
    registry: ContractRegistry | None = None,
) -> Store:
    """The existing store, for looking at it: read-only, so that neither its writer nor its indexes are disturbed.

    ``chain`` names the kind of chain it must hold, ``registry`` the code of its contracts.

    Where it cannot be read so, it is opened for writing once if nobody else has it: what is damaged is repaired then,
    where nothing is lost by it.
    """
    from ..doctor.ladder import open_recovered
    from .chains import chain_of

    found = chain_of(_spec_of(data_dir, chain), registry=registry)
    settings = load(data_dir, config)
    try:
        return open_recovered(data_dir, chain=found, create=False, read_only=True, settings=settings)
    except CorruptionError as damage:
        try:
            with _recovering(quiet=True) as step:
                return open_recovered(
                    data_dir, chain=found, create=False, settings=settings, progress=step, recover="lossless"
                )
        except (StoreLocked, ReadOnlyError):
            raise damage from None


def tell_recovery(store: Store, out: Output) -> None:
    """People are told what opening the store had to do, if it was more than open files."""
    found = store.recovery
    if found.created or (found.clean and not found.eventful):
        return
    parts = [f"{found.frames_found} frames found", f"{found.frames_replayed} replayed"]
    parts += [f"{cut.length} bytes set aside ({cut.reason})" for cut in found.discarded]
    out.note(f"recovered after an unclean end in {found.seconds:.2f} s: " + ", ".join((*parts, *found.notes)))


def open_to_write(
    data_dir: Path,
    config: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    *,
    chain: str | None = None,
    quiet: bool = False,
    registry: ContractRegistry | None = None,
) -> Store:
    """The existing store, for changing it. ``chain`` names the kind of chain it must hold, ``registry`` its code."""
    from ..doctor.ladder import open_recovered
    from .chains import chain_of

    spec = _spec_of(data_dir, chain)
    settings = load(data_dir, config, overrides)
    with _recovering(quiet=quiet) as step:
        store = open_recovered(
            data_dir, chain=chain_of(spec, registry=registry), create=False, settings=settings, progress=step
        )
    _tell_loss(store)
    return store


class Work(NamedTuple):
    """What a long piece of work on an open store is given."""

    progress: Callable[[int, int], None]
    keep_going: Callable[[], bool]


@contextmanager
def store_at_work(
    title: str, data_dir: Path, config: Path | None, out: Output, seconds: float, *, unit: str = "blocks"
) -> Iterator[tuple[Store, Work]]:
    """The store, open for one piece of work that shows a bar and that a signal ends; it does no other by its settings.

    So a dry run changes nothing, whatever they say.
    """
    quiet = out.as_json
    with open_to_write(data_dir, config, _NOTHING_ASIDE, quiet=quiet) as store, StopSignals() as stop:
        tell_recovery(store, out)
        with Progress(title, None, unit=unit, quiet=quiet, seconds=seconds) as progress:
            yield store, Work(lambda done, total: progress.stage(title, done, total), lambda: not stop())


def create_or_open(
    data_dir: Path,
    config: Path | None,
    engine: str | None,
    make_chain: Callable[[Identity | None], Chain],
    overrides: Mapping[str, object] | None = None,
    *,
    quiet: bool = False,
) -> Store:
    """The store in ``data_dir`` for the chain that ``make_chain`` chooses, created if the directory is empty."""
    from ..doctor.ladder import open_recovered

    identity = find_identity(data_dir)
    chain = make_chain(identity)
    _opened.set(chain.spec.name)
    settings = load(data_dir, config, overrides)
    url = data_dir if engine is None else f"{engine}:{data_dir}"
    with _recovering(quiet=quiet) as step:
        store = open_recovered(url, chain=chain, create=True, settings=settings, progress=step)
    _tell_loss(store)
    return store


def _tell_loss(store: Store) -> None:
    """Whatever else is printed: that an open went back behind what was acknowledged is said on stderr."""
    plan = (store.recovery.repaired or {}).get("plan")
    if isinstance(plan, dict) and plan["loss"] is not None:
        print(
            f"warning: the store went back to height {plan['height']} as the setting 'recovery' allows;"
            f" {plan['loss']['blocks']} blocks are gone. 'store.recovery' and the event 'blocks_given_up' name them",
            file=sys.stderr,
        )
