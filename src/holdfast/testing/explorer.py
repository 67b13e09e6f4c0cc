"""``explore``: a workload runs once, and every kind of image that a power cut may leave of it is opened and checked.

Invariants:
    * The workload runs once, on a simulated machine; each moment between two of its operations is kept, with what was
      acknowledged by then. Images are made from the moments (``images``).
    * Every moment has its first image before any has a second one. Images with equal contents are checked once, and
      judged by what had been acknowledged at each of their moments.
    * Some images have the operations of their own recovery recorded, and that is explored in the same way.
    * A run that never met a kind of operation or image that was expected has failed: it proves nothing.

What it cannot see: work of several threads at once, since operations must come in the same order each time. Group
commit is explored as what a crash can see of it: several operations begun, acknowledged together by one sync.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import shutil
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from ..errors import InvalidInputError
from .images import IMAGE_KINDS, PROFILES, Choice, Image, Moment, build, choices
from .machine import Machine, new_machine

__all__ = ["EXPECTED", "Acks", "CrashFound", "Failure", "Report", "explore", "require"]

Workload = Callable[[Machine, "Acks"], None]
Check = Callable[[Machine], int]

EXPECTED = ("create", "pwrite", "sync", "rename", "sync_directory", "recovery", *IMAGE_KINDS)
"""Kinds of operations and of images without which a run has failed, unless it says otherwise."""

_RECOVERY_SHARE = 0.2
_IMAGES_PER_RECOVERY = 12
_DUPLICATES_IN_A_ROW = 24
"""After so many images of a moment that were known already, nothing new is expected of it."""


class CrashFound(AssertionError):
    """An exploration failed; the message names what was found and how to see it again."""


class _Hang(BaseException):
    """A check took too long. Not an ``Exception``: nothing on the way may take it for an answer."""


@dataclass
class Acks:
    """What the workload has promised to its users, counted from 1."""

    acknowledged: int = 0
    started: int | None = None

    def begin(self, number: int) -> None:
        """Operations up to ``number`` have begun: any of them may be in the store. Without it: one more than done."""
        self.started = number

    def done(self, number: int | None = None) -> None:
        """Operation ``number`` is durable, and so are those before it; without a number: one more."""
        self.acknowledged = self.acknowledged + 1 if number is None else number


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that was not what it must be. ``place`` names it: operation, image, and the same in its recovery."""

    verdict: str
    place: str
    kind: str
    profile: str
    after: str
    text: str
    saved: Path | None = None


@dataclass
class Report:
    """What a run has met.

    Attributes:
        operations: operations of the workload, by kind.
        after: images, by the kind of the operation before them; this and the next three count the known ones, too.
        kinds: images, by what was kept.
        profiles: images, by the first profile under which they are legal.
        verdicts: images, by verdict: ok, LOST, FUTURE, TORN, error, hang.
        images: different images that were opened and checked, those of recoveries too.
        known: images that were equal to earlier ones, and were judged by what those held.
        recoveries: recoveries that were recorded; ``in_recovery`` images were taken from them.
        acknowledged: what the workload acknowledged in all.
    """

    seed: int
    operations: Counter[str] = field(default_factory=Counter)
    after: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    profiles: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    images: int = 0
    known: int = 0
    recoveries: int = 0
    in_recovery: int = 0
    acknowledged: int = 0
    missed: tuple[str, ...] = ()
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """True if every image was right and nothing that was expected was missed."""
        return not self.failures and not self.missed

    def as_dict(self) -> dict[str, object]:
        """The counts, as plain JSON values."""
        names = ("operations", "after", "kinds", "profiles", "verdicts")
        numbers = ("seed", "images", "known", "recoveries", "in_recovery", "acknowledged", "seconds")
        return {
            **{name: getattr(self, name) for name in numbers},
            **{name: dict(sorted(getattr(self, name).items())) for name in names},
            "missed": list(self.missed),
            "failures": [f"{each.verdict} at {each.place} ({each.kind}): {each.text}" for each in self.failures],
        }

    def __str__(self) -> str:
        def counts(title: str, counter: Counter[str]) -> str:
            return f"{title}: " + ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))

        rate = self.images / self.seconds if self.seconds else 0.0
        more = f"{self.known} known, {self.in_recovery} of {self.recoveries} recoveries, {rate:.0f}/s"
        return "; ".join(
            (
                f"{self.images} images ({more}), {self.acknowledged} acknowledged",
                counts("verdicts", self.verdicts),
                counts("operations", self.operations),
                counts("after", self.after),
                counts("images", self.kinds),
                counts("profiles", self.profiles),
            )
        )


def explore(
    workload: Workload,
    check: Check,
    *,
    images: int = 2000,
    seed: int = 0,
    prepare: Callable[[Machine], None] | None = None,
    profiles: tuple[str, ...] = PROFILES,
    expect: Collection[str] = EXPECTED,
    failures_max: int = 1,
    image_seconds: float = 20.0,
    only: str | None = None,
    save: Path | None = None,
    reproduce: str = "explore(..., seed={seed}, only={place!r})",
    root: Path | None = None,
) -> Report:
    """Up to ``images`` different images of ``workload`` were opened and checked; what was met, and what was wrong.

    Args:
        workload: opens stores with ``machine.open()`` and says what is durable with ``acks.done()``. One thread; the
            same operations each time.
        check: opens the store of a machine that booted after a power cut and returns how many operations it holds.
            Raises ``AssertionError`` where the content is not that of so many operations. It may open, read and
            close; to write, it takes ``machine.crash(...)``.
        prepare: what is on the machine before the workload; all of it is durable.
        expect: kinds of operations and images that must be met, ``recovery`` among them.
        failures_max: the run ends after so many failures.
        image_seconds: a check that takes longer hangs. Known only in the main thread.
        only: the place of one image, as a failure names it: only that one is checked.
        save: directory for the images that failed.
        reproduce: how a failure says that it is seen again.
        root: directory that stands for the store's on the real disk; else a temporary one.

    Raises what the workload raises.
    """
    machine = new_machine(root)
    log = logging.getLogger("holdfast")
    level = log.level
    log.setLevel(logging.CRITICAL)  # every image recovers, and would say so
    try:
        explorer = _Explorer(check, seed, profiles, failures_max, image_seconds, save, reproduce, machine.root)
        if prepare is not None:
            with machine.running():
                prepare(machine)
            machine.abandon()
            machine = machine.settled()
        moments = explorer.record(machine, workload)
        if only is not None:
            explorer.one(moments, only)
        else:
            explorer.spread(moments, images)
        return explorer.finish(() if only is not None else expect)
    finally:
        log.setLevel(level)
        if root is None:
            shutil.rmtree(machine.root.parent, ignore_errors=True)


class _Explorer:
    def __init__(
        self,
        check: Check,
        seed: int,
        profiles: tuple[str, ...],
        failures_max: int,
        image_seconds: float,
        save: Path | None,
        reproduce: str,
        root: Path,
    ) -> None:
        self.report = Report(seed)
        self._check = check
        self._profiles = profiles
        self._failures_max = failures_max
        self._image_seconds = image_seconds
        self._save = save
        self._reproduce = reproduce
        self._root = root
        self._held: dict[bytes, int] = {}
        self._started = time.monotonic()

    # -- recording ----------------------------------------------------------------------------------------------

    def record(self, machine: Machine, workload: Workload) -> list[Moment]:
        """The moments of a run of ``workload``, from before its first operation to after its last."""
        acks = Acks()
        moments: list[Moment] = []
        with _watched(machine, moments, acks), machine.running():
            workload(machine, acks)
        machine.abandon()
        self.report.operations.update(moment.kind for moment in moments[1:])
        self.report.acknowledged = acks.acknowledged
        if not acks.acknowledged:
            raise InvalidInputError("the workload acknowledged nothing", remedy="call acks.done() after each commit")
        return moments

    # -- choosing -----------------------------------------------------------------------------------------------

    def spread(self, moments: list[Moment], images: int) -> None:
        """Images of every moment in turn, then those of recoveries, until there were ``images``."""
        recover = int(images * _RECOVERY_SHARE)
        every = max(1, (images - recover) * _IMAGES_PER_RECOVERY // max(1, recover))
        queues = [_Queue(moment, self.report.seed, self._profiles) for moment in moments]
        random.Random(self.report.seed).shuffle(queues)
        later: list[tuple[Moment, str, Choice]] = []
        while queues:
            for queue in list(queues):
                if self._full(images):
                    return
                found = self._next(queue)
                if found is None:
                    queues.remove(queue)
                    continue
                place, choice, image = found
                recording: list[Moment] | None = [] if self.report.images % every == 0 else None
                held = self._judge(queue.moment, place, choice, image, recording)
                if held is not None and recording:
                    self._recovery(recording, place, images)
                elif held is not None:
                    later.append((queue.moment, place, choice))
        for moment, place, choice in later:  # there are no more images but in recoveries
            if self._full(images):
                return
            recording = []
            self._judge(moment, place, choice, build(moment, choice), recording, again=True)
            self._recovery(recording, place, images)

    def _full(self, images: int) -> bool:
        return self.report.images >= images or self._ended()

    def _ended(self) -> bool:
        return len(self.report.failures) >= self._failures_max

    def _next(self, queue: _Queue, within: str = "") -> tuple[str, Choice, Image] | None:
        """The next image of a moment that is not known; known ones are judged by what they held."""
        while queue.known < _DUPLICATES_IN_A_ROW:
            choice = next(queue.choices, None)
            if choice is None:
                return None
            queue.number += 1
            place = f"{within}{queue.moment.number}.{queue.number}"
            image = build(queue.moment, choice)
            held = self._held.get(image.digest)
            if held is None:
                queue.known = 0
                return place, choice, image
            queue.known += 1
            self.report.known += 1
            self._count(queue.moment, choice)
            self._bounds(queue.moment, held, place, choice, image)
            if self._ended():
                return None
        return None

    def _recovery(self, moments: list[Moment], place: str, images: int) -> None:
        """The recovery of an image is cut off, too; what it had shown must be durable at its end."""
        if not moments:
            return
        self.report.recoveries += 1
        queues = [_Queue(moment, self.report.seed, self._profiles) for moment in moments]
        last = queues.pop()
        random.Random(f"{self.report.seed} {place}").shuffle(queues)
        taken = 0
        queues.insert(0, last)
        while queues and taken < _IMAGES_PER_RECOVERY and not self._full(images):
            queue = queues.pop(0)
            found = self._next(queue, f"{place}/")
            if found is not None:
                inner, choice, image = found
                self.report.in_recovery += 1
                taken += 1
                self._judge(queue.moment, inner, choice, image, None)
                queues.append(queue)

    def one(self, moments: list[Moment], place: str) -> None:
        """Only the image at ``place`` is checked."""
        steps = place.split("/")
        for depth, step in enumerate(steps):
            number, _, image_number = step.partition(".")
            if not number.isdigit() or not image_number.isdigit() or depth > 1:
                raise InvalidInputError("an image is named OPERATION.IMAGE, as a failure names it", found=place)
            moment = next((each for each in moments if each.number == int(number)), None)
            queue = _Queue(moment, self.report.seed, self._profiles) if moment is not None else None
            choice = None
            for _ in range(int(image_number)):
                choice = next(queue.choices, None) if queue is not None else None
            if moment is None or choice is None:
                raise InvalidInputError("this run has no such image", found=place, operations=len(moments) - 1)
            recording: list[Moment] = []
            image = build(moment, choice)
            self._judge(moment, place, choice, image, recording if depth + 1 < len(steps) else None)
            moments = recording
            if self.report.failures:
                return

    # -- judging ------------------------------------------------------------------------------------------------

    def _judge(
        self,
        moment: Moment,
        place: str,
        choice: Choice,
        image: Image,
        recording: list[Moment] | None,
        *,
        again: bool = False,
    ) -> int | None:
        """The image was checked; what it holds, or ``None`` if that is not what it must be."""
        self.report.images += not again
        self.report.known += again
        self._count(moment, choice)
        machine = image.boot(self._root)
        acks = Acks(moment.acknowledged, moment.most)
        watch = _watched(machine, recording, acks) if recording is not None else contextlib.nullcontext()
        held: int | None = None
        verdict = text = ""
        try:
            with machine.running(), watch, _deadline(self._image_seconds):
                held = acks.acknowledged = self._check(machine)
                acks.started = max(held, moment.most)
        except _Hang:
            verdict, text = "hang", f"the check took more than {self._image_seconds:g} s"
        except AssertionError as error:
            verdict, text = "TORN", _shown(error)
        except Exception as error:  # noqa: BLE001 - whatever a check raises is a finding
            verdict, text = "error", _shown(error)
        machine.abandon()
        if held is None:
            self._fail(verdict, text, moment, place, choice, image)
            return None
        if recording:
            recording[-1] = _after(recording[-1], held, moment.most)
        self._held[image.digest] = held
        return held if self._bounds(moment, held, place, choice, image) else None

    def _count(self, moment: Moment, choice: Choice) -> None:
        self.report.after[moment.kind] += 1
        self.report.kinds[choice.kind] += 1
        self.report.profiles[choice.profile] += 1

    def _bounds(self, moment: Moment, held: int, place: str, choice: Choice, image: Image) -> bool:
        """True if ``held`` is not less than was acknowledged at ``moment``, and not more than was begun."""
        verdict = "LOST" if held < moment.acknowledged else "FUTURE" if held > moment.most else "ok"
        self.report.verdicts[verdict] += 1
        if verdict == "ok":
            return True
        self.report.verdicts[verdict] -= 1
        text = f"{held} operations are there, {moment.acknowledged} were acknowledged, at most {moment.most} begun"
        self._fail(verdict, text, moment, place, choice, image)
        return False

    def _fail(self, verdict: str, text: str, moment: Moment, place: str, choice: Choice, image: Image) -> None:
        self.report.verdicts[verdict] += 1
        saved = None
        line = self._reproduce.format(seed=self.report.seed, place=place)
        if self._save is not None:
            saved = self._save / f"image-{place.replace('/', '-in-')}"
            _write_image(
                saved, image.boot(self._root), {"verdict": verdict, "what": text, "kept": choice.kind, "again": line}
            )
        text = f"{text}\n  again: {line}" + (f"\n  image: {saved}" if saved is not None else "")
        self.report.failures.append(Failure(verdict, place, choice.kind, choice.profile, moment.kind, text, saved))

    def finish(self, expect: Collection[str]) -> Report:
        """The report, with what was missed."""
        report = self.report
        report.seconds = time.monotonic() - self._started
        met = {*report.operations, *report.kinds} | ({"recovery"} if report.in_recovery else set())
        if not report.failures:
            report.missed = tuple(name for name in expect if name not in met)
        return report


class _Queue:
    """The images of one moment that are still to come."""

    def __init__(self, moment: Moment, seed: int, profiles: tuple[str, ...]) -> None:
        self.moment = moment
        self.choices = choices(moment, seed=seed, profiles=profiles)
        self.number = 0
        self.known = 0


@contextlib.contextmanager
def _watched(machine: Machine, moments: list[Moment], acks: Acks) -> Iterator[None]:
    """``moments`` get the state of the machine before each operation, and one at the end."""
    kind = "start"
    number = 0

    def look() -> None:
        engines = tuple((path, disk, len(disk.batches), disk.synced) for path, disk in machine.disks.items())
        moments.append(Moment(number, kind, machine.fs.state(), engines, acks.acknowledged, acks.started))

    def before(next_kind: str, _path: Path) -> None:
        nonlocal kind, number
        look()
        kind = next_kind
        number += 1

    machine.fs.watch = before
    try:
        yield
        look()
    finally:
        machine.fs.watch = None


def _after(moment: Moment, held: int, most: int) -> Moment:
    return Moment(moment.number, moment.kind, moment.device, moment.engines, held, max(held, most))


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """``_Hang`` is raised in the main thread after so many seconds; a timer that ran already goes on afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    armed = True

    def ring(_number: int, _frame: FrameType | None) -> None:
        if armed:
            raise _Hang

    started = time.monotonic()
    handler = signal.signal(signal.SIGALRM, ring)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, should a callback have eaten it
    try:
        yield
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - started)), interval)


def _shown(error: Exception) -> str:
    """The error, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {str(error)[:2000]}{place}"


def _write_image(directory: Path, machine: Machine, facts: dict[str, str]) -> None:
    """The files of ``machine`` below ``directory/files``, the batches of its engines and what was found beside them."""
    shutil.rmtree(directory, ignore_errors=True)
    for path, data in machine.fs.files().items():
        inside = path.relative_to(machine.root.parent) if path.is_relative_to(machine.root.parent) else Path(path.name)
        target = directory / "files" / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    engines = {
        str(path.relative_to(machine.root) if path.is_relative_to(machine.root) else path): [
            {key.hex(): None if value is None else value.hex() for key, value in batch.rows.items()}
            for batch in disk.batches
        ]
        for path, disk in machine.disks.items()
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "engines.json").write_text(json.dumps(engines))
    (directory / "failure.json").write_text(json.dumps(facts, indent=2) + "\n")


def require(report: Report) -> Report:
    """``report``, if it is good. Raises ``CrashFound`` otherwise."""
    for failure in report.failures[:1]:
        raise CrashFound(f"{failure.verdict} at {failure.place}, {failure.kind} after {failure.after}: {failure.text}")
    if report.missed:
        raise CrashFound(f"never met: {', '.join(report.missed)}; met: {report}")
    return report
