"""Backups in servers of S3 (``moto``) and Azure (``azurite``) on loopback: a whole cycle, cut connections, refusals."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hmac
import select
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from holdfast.backup import ObjectTarget, copy_backup, create_backup, open_repository, prune_backups, verify_backup
from holdfast.backup.prune import KeepRules
from holdfast.errors import BackupNotFound, RepositoryLocked, TargetUnavailable
from tests.cli.cli_tools import done, holdfast
from tests.unit.backup_support import grown, repository, restored, small_segments
from tests.unit.store_support import open_quick

__all__ = ["small_segments"]

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.usefixtures("small_segments")]

DEADLINE_SECONDS = 60


class Cloud(NamedTuple):
    """A server on loopback that has the bucket ``bucket``, and what tells a client of it."""

    url: str
    """Of the bucket."""
    port: int
    address: str
    """Name of the variable with its address, and what follows the port there."""
    suffix: str
    environment: dict[str, str]
    secret: str

    def at(self, port: int) -> dict[str, str]:
        """The environment of a client that comes through ``port``."""
        return self.environment | {self.address: f"http://127.0.0.1:{port}{self.suffix}"}

    def place(self, prefix: str) -> ObjectTarget:
        return ObjectTarget(f"{self.url}/{prefix}", timeout_seconds=20, sleep=lambda _: None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(command: list[str], first: Callable[[], urllib.request.Request]) -> Iterator[None]:
    """The server runs, and has answered the request ``first``."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + DEADLINE_SECONDS
    try:
        while True:
            try:
                urllib.request.urlopen(first(), timeout=5).close()
                break
            except (OSError, urllib.error.URLError):
                assert process.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.05)  # a process that starts says nothing else
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="module")
def s3(moto_path: Path) -> Iterator[Cloud]:
    port = free_port()
    make = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
    environment = {
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "a secret that nobody prints",
        "AWS_REGION": "us-east-1",
    }
    with serving([str(moto_path), "-H", "127.0.0.1", "-p", str(port)], lambda: make):
        secret = environment["AWS_SECRET_ACCESS_KEY"]
        yield Cloud("s3://bucket/some/where", port, "AWS_ENDPOINT_URL", "", environment, secret)


ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = base64.b64encode(b"a secret that nobody prints").decode()


def new_container(port: int) -> urllib.request.Request:
    """The signed request that makes the container, by the rules of Azure's Shared Key."""
    headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    lines = ["PUT", *[""] * 11, *(f"{name}:{value}" for name, value in headers.items())]
    text = "\n".join([*lines, f"/{ACCOUNT}/{ACCOUNT}/bucket", "restype:container"])
    signature = base64.b64encode(hmac.digest(base64.b64decode(ACCOUNT_KEY), text.encode(), "sha256")).decode()
    headers |= {"Authorization": f"SharedKey {ACCOUNT}:{signature}", "Content-Length": "0"}
    url = f"http://127.0.0.1:{port}/{ACCOUNT}/bucket?restype=container"
    return urllib.request.Request(url, method="PUT", headers=headers)


@pytest.fixture(scope="module")
def az(azurite_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    port = free_port()
    command = [str(azurite_path), "--silent", "--disableTelemetry", "--inMemoryPersistence", "--skipApiVersionCheck"]
    environment = {
        "AZURE_ALLOW_HTTP": "true",
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AZURITE_ACCOUNTS", f"{ACCOUNT}:{ACCOUNT_KEY}")
        with serving([*command, "--blobPort", str(port)], lambda: new_container(port)):
            yield Cloud(
                "az://bucket/some/where", port, "AZURE_STORAGE_ENDPOINT", f"/{ACCOUNT}", environment, ACCOUNT_KEY
            )


@pytest.fixture(params=["s3", "az"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """Each of the servers; the environment names it."""
    found: Cloud = request.getfixturevalue(request.param)
    for name, value in found.at(found.port).items():
        monkeypatch.setenv(name, value)
    return found


class Cutter:
    """Between us and the server: it closes a connection at the n-th byte that passes, once or from then on."""

    def __init__(self, port: int) -> None:
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.passed = 0
        self.cuts = 0
        self.cut_at: int | None = None
        self.for_ever = False
        self._mutex = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._server)) as server:
            other = {client: server, server: client}
            with contextlib.suppress(OSError):
                while True:
                    for ready in select.select(list(other), [], [])[0]:
                        data = ready.recv(4096)
                        allowed = self._allowed(len(data))
                        other[ready].sendall(data[:allowed])
                        if not data or allowed < len(data):
                            return

    def _allowed(self, count: int) -> int:
        with self._mutex:
            if self.cut_at is None or self.passed + count <= self.cut_at:
                self.passed += count
                return count
            allowed = max(0, self.cut_at - self.passed)
            self.passed += allowed
            self.cuts += 1
            if not self.for_ever:
                self.cut_at = None
            return allowed

    def arm(self, cut_at: int | None, *, for_ever: bool = False) -> None:
        """From now on bytes are counted from 0."""
        with self._mutex:
            self.passed = self.cuts = 0
            self.cut_at, self.for_ever = cut_at, for_ever

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def cutter(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cutter]:
    """The environment leads through it."""
    made = Cutter(cloud.port)
    monkeypatch.setenv(cloud.address, cloud.at(made.port)[cloud.address])
    yield made
    made.close()


def test_the_way_of_a_backup_by_the_commands(tmp_path: Path, cloud: Cloud) -> None:
    data, url = tmp_path / "data", f"{cloud.url}/commands"
    blocks = grown(data, 30)
    env = cloud.at(cloud.port) | {"HOLDFAST_BACKUP_TARGET": url}
    made = holdfast("backup", "create", "-d", data, "--verify", "--json", env=env)
    assert made.code == 0, made
    assert (made.record["repository"], made.record["verified"]) == (url, True)
    grown(data, 30, after=blocks[-1])
    second = done("backup", "create", "-d", data, "-r", url, "--verify", "--json").record
    assert int(str(second["segments_taken_over"])) > 0
    rows = done("backup", "list", "-r", url, "--json").rows
    assert [row["state"] for row in rows] == ["verified", "verified"]
    assert done("backup", "show", "-r", url, "--json").record["height"] == 59
    assert done("backup", "verify", "--all", "-r", url, "--json").record["backups"]
    pruned = done("backup", "prune", "-r", url, "--keep", "1", "--json").record
    assert pruned["removed"] == [made.record["name"]]
    done("backup", "restore", "-r", url, "--to", tmp_path / "new")
    assert done("verify", "-d", tmp_path / "new", "--json").record["ok"] is True
    done("backup", "copy", "-r", url, "--to", f"{cloud.url}/copied")
    done("backup", "copy", "-r", f"{cloud.url}/copied", "--to", tmp_path / "far")
    assert done("backup", "verify", "-r", tmp_path / "far", "--json").record["ok"] is True


def test_one_at_a_time(cloud: Cloud) -> None:
    first = open_repository(cloud.place("lock"), create=True)
    with first.lock():
        answer = holdfast("backup", "verify", "-r", f"{cloud.url}/lock", "--json")
        assert answer.error["code"] == "backup_not_found"
        with pytest.raises(RepositoryLocked) as caught:
            cloud.place("lock").lock().__enter__()
        assert caught.value.context["holder"]
        held = first.target._held  # type: ignore[attr-defined]
        held.renew()
        held.renew()
        held.check()
    with cloud.place("lock").lock():
        pass


def test_a_missing_bucket(cloud: Cloud) -> None:
    for create in (False, True):
        with pytest.raises(BackupNotFound, match="no such bucket"):
            open_repository(ObjectTarget(f"{cloud.url[:2]}://nowhere/x"), create=create)


def test_a_connection_that_is_cut_anywhere_costs_nothing(
    tmp_path: Path, cloud: Cloud, cutter: Cutter, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown(tmp_path / "data", 12)
    cutter.arm(None)
    whole(cloud.place("cut-none"), tmp_path, "none")
    total = cutter.passed
    cuts = 0
    for number in range(12):
        cutter.arm(total * number // 12 + number)
        whole(cloud.place(f"cut-{number}"), tmp_path, str(number))
        cuts += cutter.cuts
    assert cuts >= 10


def whole(target: ObjectTarget, tmp_path: Path, name: str) -> None:
    """A backup is made there, verified, copied, and restored."""
    found = open_repository(target, create=True)
    form = create_backup(tmp_path / "data", found, workers=0).manifest
    assert verify_backup(found, form.name, workers=0).ok
    far = repository(tmp_path / f"far-{name}")
    copy_backup(found, form.name, far, workers=0)
    restored(found, form.name, tmp_path / f"new-{name}")
    with open_quick(tmp_path / f"new-{name}") as store:
        assert store.tip is not None
        assert store.tip.height == 11
    assert prune_backups(found, KeepRules(last=1)).kept == (form.name,)


def test_a_server_that_is_gone_is_a_typed_error_and_the_next_run_goes_on(
    tmp_path: Path, cloud: Cloud, cutter: Cutter, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown(tmp_path / "data", 12)
    found = open_repository(cloud.place("gone"), create=True)
    cutter.arm(None)
    create_backup(tmp_path / "data", found, workers=0)
    total = cutter.passed
    for number in range(1, 6):
        left = f"gone-{number}"
        found = open_repository(cloud.place(left), create=True)
        cutter.arm(total * number // 6, for_ever=True)
        with pytest.raises(TargetUnavailable) as caught:
            create_backup(tmp_path / "data", found, workers=0)
        assert caught.value.retryable
        assert cloud.secret not in str(caught.value.as_dict())
        cutter.arm(None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(cloud.address, cloud.at(cloud.port)[cloud.address])
            heir = Late(f"{cloud.url}/{left}")  # the lock could not be given back: it has to expire
            again = open_repository(heir)
            form = create_backup(tmp_path / "data", again, workers=0).manifest
            assert verify_backup(again, form.name, workers=0).ok


class Late(ObjectTarget):
    """Its store says that it is later."""

    def now(self) -> float:
        return super().now() + 400
