"""Every error Holdfast raises: one tree, one table of codes and exit codes.

Invariants:
    * ``code`` is append-only: a code once published keeps its meaning for ever.
    * ``exit_code`` belongs to a category and is never reused for another one.
    * A message says what was found, what was expected and, in ``remedy``, the next safe thing to do.
    * ``recovery`` says which kind of step that is, for programs; ``holdfast.recovery.recover`` takes it where no person
      is needed. ``retryable`` is true exactly where it is ``retry``.

``docs/OPERATIONS.md`` lists every code with its remedy; a test keeps both equal.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar

__all__ = [
    "AnswerTooLarge",
    "BackupDamaged",
    "BackupKeyError",
    "BackupNotFound",
    "BlockNotFound",
    "CallbackError",
    "ClosedError",
    "CommitLoss",
    "ConflictError",
    "CorruptionError",
    "DeviceError",
    "EngineError",
    "EngineMismatch",
    "EquivocationError",
    "FencedError",
    "FinalityError",
    "ForeignStore",
    "FormatError",
    "FormatTooNew",
    "FormatTooOld",
    "HoldfastError",
    "IndexBehind",
    "IndexFailed",
    "InternalError",
    "InvalidBlock",
    "InvalidInputError",
    "KeyRejected",
    "KeyRequired",
    "LimitExceeded",
    "MiningCancelled",
    "MiningError",
    "MissingFile",
    "NotFoundError",
    "OutOfSpace",
    "ParentMismatch",
    "ParentUnknown",
    "PersistenceError",
    "PoisonedError",
    "ProofInvalid",
    "PrunedError",
    "ReadOnlyError",
    "Recovery",
    "RecoveryTimeout",
    "RemoteError",
    "ReorgTooDeep",
    "RepositoryLocked",
    "ResourceExhausted",
    "RootMismatch",
    "SafetyError",
    "SafetyStateMissing",
    "SavedInPart",
    "SnapshotInvalid",
    "StateError",
    "StoreExists",
    "StoreLocked",
    "StoreNotFound",
    "TargetDenied",
    "TargetUnavailable",
    "UnsupportedFormat",
    "ViewExpired",
    "all_errors",
]


class Recovery(str, Enum):
    """What leads on from an error. ``docs/OPERATIONS.md`` describes each; ``holdfast.recovery.recover`` executes it."""

    RETRY = "retry"
    """The same call again, later: what stood in the way may be gone."""
    REPLAY = "replay"
    """The store is closed and opened again: the journal is replayed."""
    REBUILD = "rebuild"
    """The views are made anew from the journal."""
    REFETCH = "refetch"
    """The block, file, chunk or proof is fetched again, from another source where there is one."""
    LAST_GOOD = "last_good"
    """The refused call changed nothing: go on from the state as it is, for example on the present tip."""
    MANUAL = "manual"
    """A person must decide; every step that a program could take by itself might lose something."""
    FAIL = "fail"
    """Give up: the request itself is wrong, and stays wrong."""


_REMEDIES = {
    Recovery.REPLAY: "close the store and open it again: it recovers to the last durable commit",
    Recovery.REBUILD: "the views are damaged, the journal is the truth: run 'holdfast rebuild'",
}
"""What helps where one error needs another strategy than the rest of its class."""


def _show(value: object) -> str:
    if isinstance(value, (bytes, bytearray, memoryview)):
        raw = bytes(value)
        return raw.hex() if len(raw) <= 64 else f"{raw[:64].hex()}... ({len(raw)} bytes)"
    return str(value)


class HoldfastError(Exception):
    """Base of every error of this package; ``context`` names the place, ``remedy`` the next safe step.

    ``recovery`` is that step for programs. It belongs to the class; an error may have another one than its class, and
    then also another remedy.
    """

    code: ClassVar[str] = "holdfast"
    exit_code: ClassVar[int] = 1
    recovery: Recovery = Recovery.MANUAL
    retryable: bool = False
    default_remedy: ClassVar[str] = "run 'holdfast verify' on the store and read the message above"

    def __init__(
        self, message: str, *, remedy: str | None = None, recovery: Recovery | None = None, **context: object
    ) -> None:
        super().__init__(message)
        self.message = message
        self.context = context
        self.remedy = remedy if remedy is not None else self.default_remedy
        if recovery is not None and recovery is not self.recovery:
            self.needs(recovery)
            if remedy is None:
                self.remedy = _REMEDIES.get(recovery, self.default_remedy)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.retryable = cls.recovery is Recovery.RETRY

    def needs(self, recovery: Recovery) -> None:
        """This one error needs another strategy than its class; the remedy stays as it is."""
        self.recovery = recovery
        self.retryable = recovery is Recovery.RETRY

    def __str__(self) -> str:
        place = ", ".join(f"{name}={_show(value)}" for name, value in self.context.items() if value is not None)
        return f"{self.message} ({place})" if place else self.message

    def as_dict(self) -> dict[str, object]:
        """The error as plain JSON values: code, exit_code, retryable, recovery, message, context, remedy."""
        return {
            "code": self.code,
            "exit_code": self.exit_code,
            "retryable": self.retryable,
            "recovery": self.recovery.value,
            "message": self.message,
            "context": {name: _plain(value) for name, value in self.context.items() if value is not None},
            "remedy": self.remedy,
        }


def _plain(value: object) -> object:
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return _show(value)


# -- not found ---------------------------------------------------------------------------------------------------


class NotFoundError(HoldfastError, KeyError):
    """What was asked for is not in the store, and never was as far as the store knows."""

    code = "not_found"
    exit_code = 14
    recovery = Recovery.FAIL
    default_remedy = "check the name, hash or height; 'holdfast tip' and 'holdfast tips' show what the store holds"


class BlockNotFound(NotFoundError):
    """No block with this hash or height is stored."""

    code = "block_not_found"


class StoreNotFound(NotFoundError):
    """The directory is missing or empty, and the call was not allowed to create a store there."""

    code = "store_not_found"
    default_remedy = "check the path, or create a store with 'holdfast init --data-dir DIR --chain NAME'"


class BackupNotFound(NotFoundError):
    """There is no backup of this name, or no backup repository at this place."""

    code = "backup_not_found"
    default_remedy = "check the place and the name: 'holdfast backup list' shows what is there"


class PrunedError(HoldfastError):
    """It was here and has been pruned by policy; ``least_readable`` in the context names the oldest height left."""

    code = "pruned"
    exit_code = 15
    recovery = Recovery.FAIL
    default_remedy = "ask for a height at or above 'least_readable', or widen the retention policy"


class IndexBehind(HoldfastError):
    """A user index is not built up to the tip, so reads of it are refused."""

    code = "index_behind"
    exit_code = 15
    recovery = Recovery.RETRY
    default_remedy = "open the store with the index function registered and wait for 'holdfast indexes' to say 'ready'"


class ViewExpired(HoldfastError):
    """A pinned reader held more memory than allowed and was released."""

    code = "view_expired"
    exit_code = 15
    recovery = Recovery.RETRY
    default_remedy = "open a new reader; keep readers short or raise 'pinned_bytes_max'"


# -- conflict ----------------------------------------------------------------------------------------------------


class ConflictError(HoldfastError):
    """The request contradicts what is stored; nothing was changed."""

    code = "conflict"
    exit_code = 16
    recovery = Recovery.LAST_GOOD
    default_remedy = "read the current tip and build on it"


class ParentMismatch(ConflictError):
    """A draft was built on a block that is no longer the one the call needs."""

    code = "parent_mismatch"


class ParentUnknown(ConflictError):
    """The block's parent is not stored, so the block cannot be connected."""

    code = "parent_unknown"
    recovery = Recovery.REFETCH
    default_remedy = "add the parent first, or import the file that holds it; state a base to start above genesis"


class EngineMismatch(ConflictError):
    """The store's views were made with another engine than the one asked for."""

    code = "engine_mismatch"
    recovery = Recovery.FAIL
    default_remedy = "open it with the engine it was made with, or run 'holdfast convert --data-dir DIR --to ENGINE'"


class ForeignStore(ConflictError):
    """The directory holds another chain, or files that are not a Holdfast store."""

    code = "foreign_store"
    recovery = Recovery.FAIL
    default_remedy = "choose an empty directory; nothing in this one was touched"


class StoreExists(ConflictError):
    """A store is already there, and the call was asked to create one."""

    code = "store_exists"
    recovery = Recovery.FAIL
    default_remedy = "open it, or choose an empty directory"


class RootMismatch(ConflictError):
    """The state root that a block claims is not the one that its changes give; nothing was changed."""

    code = "root_mismatch"
    default_remedy = "the block is invalid, or it was executed by other rules; do not build on it"


class IndexFailed(ConflictError):
    """A user index function raised, or gave bad or too many rows; the commit was refused and nothing changed."""

    code = "index_failed"
    default_remedy = "mend the index function named above, or open the store without it"


class CallbackError(ConflictError):
    """Code that the user gave to the store raised; nothing was changed."""

    code = "callback_failed"


# -- safety ------------------------------------------------------------------------------------------------------


class SafetyError(HoldfastError):
    """The request would break a promise already made to other nodes; nothing was changed."""

    code = "safety"
    exit_code = 11
    recovery = Recovery.MANUAL
    default_remedy = "do not retry; find out why this was asked for"


class FinalityError(SafetyError):
    """The request would change blocks at or below the finalized height."""

    code = "below_finality"


class ReorgTooDeep(FinalityError):
    """The fork point lies deeper than the store may reorganise."""

    code = "reorg_too_deep"
    default_remedy = "a deeper reorganisation needs a rebuild from a chosen base; check that this peer is honest"


class EquivocationError(SafetyError):
    """Another payload was already saved at this position."""

    code = "equivocation"


class SafetyStateMissing(SafetyError):
    """There is no safety record for this identity, and absence is never taken for 'a new node'."""

    code = "safety_missing"


class FencedError(SafetyError):
    """This copy of the store may not sign: it was restored, copied or moved since it last signed."""

    code = "fenced"
    default_remedy = "make sure that no other copy signs, then lift the fence with a position floor"


# -- bad input ---------------------------------------------------------------------------------------------------


class InvalidInputError(HoldfastError, ValueError):
    """An argument or a setting is not usable; nothing was changed."""

    code = "invalid_input"
    exit_code = 2
    recovery = Recovery.FAIL
    default_remedy = "correct the value named above"


class BackupKeyError(InvalidInputError):
    """A backup repository is encrypted, and no key, or not its key, was given."""

    code = "backup_key"
    default_remedy = "give the key file or the passphrase that the repository was made with"


class KeyRequired(InvalidInputError):
    """The store is encrypted, and no key was given; nothing was changed."""

    code = "key_required"
    default_remedy = (
        "give its key: open(url, key=...), or 'holdfast --store-key-file FILE COMMAND', or --store-passphrase-file"
    )


class KeyRejected(InvalidInputError):
    """The key is not the one that the store was made with, or the store is not encrypted; nothing was changed."""

    code = "key_rejected"
    default_remedy = "give the key file or the passphrase that the store was made with"


class InvalidBlock(HoldfastError, ValueError):
    """A block breaks the rules of its chain; it was not stored."""

    code = "invalid_block"
    exit_code = 10
    recovery = Recovery.REFETCH
    default_remedy = "the block or the file it came from is bad; fetch it again from another source"


class LimitExceeded(HoldfastError, ValueError):
    """A size or a count is above its limit; nothing was changed."""

    code = "limit_exceeded"
    exit_code = 10
    recovery = Recovery.FAIL
    default_remedy = "send less at once, or raise the limit named above if it is a setting"


class ProofInvalid(HoldfastError, ValueError):
    """A proof does not prove what it should: it is malformed, of another root, or of something else."""

    code = "proof_invalid"
    exit_code = 10
    recovery = Recovery.REFETCH
    default_remedy = "do not trust the claim; ask another node for a proof against a root that you know"


class SnapshotInvalid(HoldfastError, ValueError):
    """A snapshot, or the chunk named, is damaged, incomplete or of another chain; nothing of it was stored."""

    code = "snapshot_invalid"
    exit_code = 10
    recovery = Recovery.REFETCH
    default_remedy = "fetch the chunk or file named above again from another source, then run the same command again"


class RemoteError(HoldfastError):
    """A remote node did not answer, or answered with something unusable."""

    code = "remote"
    exit_code = 17
    recovery = Recovery.RETRY
    default_remedy = "check the address and that the node is up, then run the same command again: it resumes"


class AnswerTooLarge(RemoteError):
    """A remote node's answer is larger than allowed; asking for less at once may help."""

    code = "remote_answer_too_large"
    recovery = Recovery.REFETCH
    default_remedy = "ask for fewer blocks at once; the command does so by itself where it can"


class TargetUnavailable(RemoteError):
    """An object store did not answer, timed out, cut the connection or failed, as often as it was asked."""

    code = "backup_target_unavailable"
    default_remedy = (
        "check the network, the endpoint and the state of the store, then run the same command again: "
        "what was stored is kept"
    )


# -- format and corruption ---------------------------------------------------------------------------------------


class FormatError(HoldfastError):
    """Bytes do not have the form that the format document asks for."""

    code = "format"
    exit_code = 9
    recovery = Recovery.MANUAL


class UnsupportedFormat(FormatError):
    """The bytes are well formed but ask for a feature that this version does not have."""

    code = "unsupported_format"
    default_remedy = "use a newer version of Holdfast; nothing was touched"


class FormatTooNew(UnsupportedFormat):
    """The store was written by a newer version; it was not touched."""

    code = "format_too_new"


class FormatTooOld(FormatError):
    """The store was written in an older format, which this version does not open as it is; it was not touched."""

    code = "format_too_old"
    default_remedy = "copy the directory, then run 'holdfast migrate --dry-run' and 'holdfast migrate' on it"


class CorruptionError(FormatError):
    """Stored bytes are not what was written. Nothing was repaired, dropped or overwritten."""

    code = "corruption"
    exit_code = 3
    recovery = Recovery.MANUAL
    default_remedy = (
        "copy the directory as it is; 'holdfast verify --level views' then says what is damaged and what is not"
    )


class MissingFile(CorruptionError):
    """A file that the store needs is gone."""

    code = "missing_file"
    default_remedy = "put the file back from a copy; never create an empty one in its place"


class CommitLoss(CorruptionError):
    """Commits that were acknowledged are no longer in the journal."""

    code = "commit_loss"
    exit_code = 4
    default_remedy = "stop using this copy and keep it; an older copy of the journal was put in place, or the disk lied"


class BackupDamaged(CorruptionError):
    """An object of a backup repository is damaged, missing or not what it should be; nothing was restored from it."""

    code = "backup_damaged"
    default_remedy = (
        "take another backup or another copy of this one; 'holdfast backup create --check' stores what is damaged "
        "again as long as the store still has it"
    )


# -- engine and devices ------------------------------------------------------------------------------------------


class EngineError(HoldfastError):
    """The storage under the store failed."""

    code = "engine"
    exit_code = 6
    recovery = Recovery.REPLAY
    default_remedy = "look at the system log for disk errors, then reopen the store"


class OutOfSpace(EngineError):
    """The disk, quota or map is full; what was acknowledged is intact."""

    code = "out_of_space"
    exit_code = 5
    recovery = Recovery.RETRY
    default_remedy = "free some space and reopen the store; nothing acknowledged was lost"


class DeviceError(EngineError):
    """The device reported an I/O error."""

    code = "device"


class PoisonedError(EngineError):
    """An earlier write or sync failed, so nothing more is written until the store is reopened."""

    code = "poisoned"
    default_remedy = "close the store and open it again: it recovers to the last durable commit"


class ResourceExhausted(EngineError):
    """Memory, file descriptors or threads ran out."""

    code = "resources"
    exit_code = 13
    recovery = Recovery.RETRY
    default_remedy = "raise the limit of the process (ulimit) or lower the cache settings"


class RecoveryTimeout(EngineError):
    """The engine did not open within its deadline; its files are damaged or the disk hangs."""

    code = "recovery_timeout"
    exit_code = 12
    recovery = Recovery.REBUILD
    default_remedy = "run 'holdfast rebuild --data-dir DIR': the views are made anew from the journal"


# -- state of the handle -----------------------------------------------------------------------------------------


class StateError(HoldfastError):
    """The handle cannot do this in its present state."""

    code = "state"
    exit_code = 18
    recovery = Recovery.FAIL
    default_remedy = "the call does not fit what was called before it: correct the caller"


class ClosedError(StateError):
    """The store, reader or process copy is closed."""

    code = "closed"
    recovery = Recovery.REPLAY
    default_remedy = "open the store again"


class ReadOnlyError(StateError):
    """The store, or the file system under it, is read-only."""

    code = "read_only"
    exit_code = 8
    recovery = Recovery.MANUAL
    default_remedy = "open it for writing, or give the process permission to write to the directory"


class TargetDenied(ReadOnlyError):
    """An object store refuses what was asked: the credentials are wrong or missing, or may not do it."""

    code = "backup_target_denied"
    default_remedy = "check the credentials in the environment, and that they may list, read, write and delete there"


class StoreLocked(StateError):
    """Another process has the store open for writing."""

    code = "locked"
    exit_code = 7
    recovery = Recovery.RETRY
    default_remedy = "stop the process named above, or open the store read-only"


class RepositoryLocked(StoreLocked):
    """Somebody else adds backups to the repository, or removes some."""

    code = "repository_locked"
    default_remedy = "wait until the process named above has ended, then run the same command again"


# -- mining ------------------------------------------------------------------------------------------------------


class MiningError(HoldfastError):
    """A block could not be mined; the chain is unchanged."""

    code = "mining"
    exit_code = 19
    recovery = Recovery.RETRY
    default_remedy = "lower the difficulty or allow more attempts, then try again"


class MiningCancelled(MiningError):
    """Mining was stopped on request; nothing was lost."""

    code = "mining_cancelled"


class PersistenceError(HoldfastError):
    """A mined block could not be stored; the tip in memory is the durable tip."""

    code = "persistence"
    exit_code = 6
    recovery = Recovery.REPLAY
    default_remedy = "see the cause; reopen the store and mine again"


class SavedInPart(HoldfastError):
    """A block is in the chain, but what stands beside the chain could not be saved after it."""

    code = "saved_in_part"
    exit_code = 6
    recovery = Recovery.REPLAY
    default_remedy = (
        "see the cause; do not make the block again: save or reload the chain, what is pending is judged anew"
    )


class InternalError(HoldfastError):
    """A bug of ours; please report it with the message."""

    code = "internal"
    exit_code = 70
    recovery = Recovery.MANUAL
    default_remedy = "please report this with the whole message"


def all_errors() -> list[type[HoldfastError]]:
    """Every error class of the tree, base first, each once, in the order of definition."""
    found: list[type[HoldfastError]] = []
    queue: list[type[HoldfastError]] = [HoldfastError]
    while queue:
        kind = queue.pop(0)
        if kind not in found:
            found.append(kind)
            queue.extend(kind.__subclasses__())
    return found
