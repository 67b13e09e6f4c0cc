"""``holdfast import``: blocks from files, into an existing store or a new one."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from ..errors import ForeignStore, InvalidInputError
from .options import BatchBlocks, Config, DataDir, Durability, Engine, Json, Network, Seconds
from .output import Output, bytes_text
from .progress import INTERRUPTED, Progress, StopSignals

if TYPE_CHECKING:
    from ..chains.importing import BlockSource, ImportProgress, ImportReport
    from ..chains.pow import PowChain
    from ..store.chain import Chain
    from ..store.identity import Identity
    from ..store.store import Store

__all__ = ["register"]

_FORMS = ("bitcoin", "evm", "pow-json", "xai")


def register(app: typer.Typer) -> None:
    """The command is part of ``app``."""
    app.command("import")(import_)


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the command line asked for."""

    files: list[Path]
    network: str | None
    base_height: int | None
    magic: str | None


def import_(
    form: Annotated[str, typer.Argument(metavar="CHAIN", help="bitcoin, evm, pow-json or xai.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Block files; .bz2 and .zst are unpacked.")],
    data_dir: DataDir,
    network: Network = None,
    base_height: Annotated[
        int | None, typer.Option("--base-height", min=0, help="Height of the first block of files without a genesis.")
    ] = None,
    magic: Annotated[str | None, typer.Option("--magic", metavar="HEX", help="bitcoin: bytes before a block.")] = None,
    engine: Engine = None,
    durability: Durability = None,
    batch_blocks: BatchBlocks = 64,
    progress_seconds: Seconds = 2.0,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Import block files. Blocks already stored are skipped, so the same command continues a stopped import."""
    from ..chains.importing import import_files
    from .session import create_or_open, find_identity, tell_recovery

    wish = _Wish(files, network, base_height, magic)
    overrides = {"durability": durability}
    out = Output(as_json=as_json)
    if form == "pow-json":
        _import_pow_json(wish, data_dir, config, engine, out)
        return
    if form == "xai":
        if len(files) != 1 or base_height is not None or magic is not None:
            raise InvalidInputError("a chain of the original is one file, with neither a base nor a magic")
        from .xai import import_xai

        import_xai(files[0], data_dir, network, config, engine, overrides, progress_seconds, out)
        return
    if form not in _FORMS:
        raise InvalidInputError("nothing of this name can be imported", found=form, expected=", ".join(_FORMS))
    identity = find_identity(data_dir)
    _kind_checked(identity, form, data_dir)
    source, chain = (_bitcoin if form == "bitcoin" else _evm)(wish, data_dir, identity)
    with contextlib.ExitStack() as stack:
        stack.callback(source.close)
        store = stack.enter_context(create_or_open(data_dir, config, engine, lambda _: chain, overrides, quiet=as_json))
        tell_recovery(store, out)
        stop = stack.enter_context(StopSignals())
        progress = stack.enter_context(
            Progress("importing", source.total_blocks, quiet=as_json, seconds=progress_seconds)
        )
        report = import_files(
            store,
            source,
            base_height=base_height,
            progress=lambda step: _show(progress, step),
            stop=stop,
            batch_blocks=batch_blocks,
        )
        progress.close()
        _report(store, report, out)
    if report.stopped:
        raise typer.Exit(INTERRUPTED)


def _show(progress: Progress, step: ImportProgress) -> None:
    detail = f"{bytes_text(step.bytes_done)}"
    if step.tip_height is not None:
        detail += f", tip {step.tip_height}"
    progress.update(step.blocks_done, detail)


def _report(store: Store, report: ImportReport, out: Output) -> None:
    from .looking import block_row

    tip = store.tip
    values = report.as_dict() | {"tip": None if tip is None else block_row(store, tip)}
    note = getattr(store.chain, "note", "")
    values["notes"] = [*report.notes, *([note] if note else [])]
    if out.as_json:
        values["recovery"] = store.recovery.as_dict()
    out.record(values)
    if report.stopped:
        out.note(
            f"stopped: {report.added} blocks were added and are durable. "
            "next: run the same command again, it goes on from there"
        )


def _kind_checked(identity: Identity | None, expected: str, data_dir: Path) -> None:
    if identity is not None and identity.spec.name != expected:
        found = f"{identity.spec.name} {identity.spec.id}".strip()
        raise ForeignStore("the store holds another chain", path=data_dir, found=found, expected=expected)


def _bitcoin(wish: _Wish, data_dir: Path, identity: Identity | None) -> tuple[BlockSource, Chain]:
    from ..chains.bitcoin import BitcoinChain, BlockFiles, detect_network

    if wish.network is not None:
        network = wish.network
    elif identity is not None:
        network = identity.spec.id
    elif wish.magic is not None:
        raise InvalidInputError("--magic needs --network: the rules of the chain do not follow from a magic")
    else:
        network = detect_network(wish.files).name
    chain = BitcoinChain(network, from_base=wish.base_height is not None)
    return BlockFiles(wish.files, network, magic=_magic(wish.magic)), chain


def _magic(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        magic = bytes.fromhex(text.removeprefix("0x"))
    except ValueError as exc:
        raise InvalidInputError("a magic is four bytes in hex", found=text[:80]) from exc
    if len(magic) != 4:
        raise InvalidInputError("a magic is four bytes in hex", found=text[:80])
    return magic


def _evm(wish: _Wish, data_dir: Path, identity: Identity | None) -> tuple[BlockSource, Chain]:
    from ..chains.evm import EvmFiles
    from .chains import ChainOptions, chain_of, new_chain

    if wish.magic is not None:
        raise InvalidInputError("only bitcoin files have a magic")
    if identity is not None and wish.network is None:
        return EvmFiles(wish.files), chain_of(identity.spec)
    return EvmFiles(wish.files), new_chain("evm", ChainOptions(wish.network))


def _import_pow_json(wish: _Wish, data_dir: Path, config: Path | None, engine: str | None, out: Output) -> None:
    from ..chains.pow.blockchain import Blockchain, ChainConfig
    from .looking import block_row
    from .session import create_or_open

    if len(wish.files) != 1 or wish.base_height is not None or wish.magic is not None:
        raise InvalidInputError("an export is one file, with neither a base nor a magic", found=len(wish.files))
    try:
        stream = wish.files[0].open(encoding="utf-8", errors="replace", newline="")
    except OSError as exc:
        raise InvalidInputError(f"the file cannot be read: {exc.strerror}", path=wish.files[0]) from exc
    with stream:
        chains: list[PowChain] = []

        def make_chain(identity: Identity | None) -> Chain:
            _kind_checked(identity, "pow", data_dir)
            chains.append(_pow_chain(stream, wish, identity))
            return chains[0]

        with create_or_open(data_dir, config, engine, make_chain, quiet=out.as_json) as store:
            stream.seek(0)
            Blockchain.from_json(stream, store, ChainConfig(chains[0].parameters))
            blocks = store.blocks.statistics()["blocks"]
            assert store.tip is not None
            out.record({"blocks": blocks, "tip": block_row(store, store.tip)})


def _pow_chain(stream: TextIO, wish: _Wish, identity: Identity | None) -> PowChain:
    """The chain of the store, or one whose genesis block is the first record of the file."""
    from ..chains.pow import PowChain, PowParameters
    from ..chains.pow.json_format import read_records

    if identity is not None:
        return PowChain.from_spec(identity.spec)
    first = next(read_records(stream), None)
    if first is None:
        raise InvalidInputError("the file holds no records", path=wish.files[0])
    name = PowParameters().network if wish.network is None else wish.network
    return PowChain(PowParameters(network=name, initial_difficulty=int(first.difficulty)))
