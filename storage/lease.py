"""The lease of a run's writer, which excludes writers with other homes and on other machines.

The record of the writer is beside the artifacts of the run. The writer renews it every RENEWAL_SECONDS. A record that
does not change for LEASE_SECONDS is out of date, and another process may become the writer. That process measures the
time with its own monotonic clock, so the clocks of two machines are never compared. The record of a process that has
ended on this machine is out of date at once.

Each writer has a number, which grows. A process that was suspended for longer than its lease finds another writer in
the record, and cannot commit any more.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path

from storage.errors import StorageError
from storage.units.store import UnitStore

LEASE_SECONDS = 60.0
RENEWAL_SECONDS = 10.0
RECORD = "record.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Writer:
    """The writer of a run, as its record describes it."""

    number: int  # above the number of every earlier writer
    process: int
    started: int  # start of the process, in clock ticks since the machine was booted
    machine: str  # boot and PID namespace; empty where the system has no /proc
    host: str
    since: str  # local time, for messages only
    renewals: int = 0
    released: bool = False

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since}"

    def is_same(self, other: Writer | None) -> bool:
        """Whether `other` is a record of this writer, perhaps of another renewal."""
        return other is not None and (self.number, self._process) == (other.number, other._process)

    def is_out_of_date(self) -> bool:
        """Whether this writer has certainly ended. A process of another machine may have ended, too."""
        return self.released or (self.machine == _machine() != "" and not _is_running(self.process, self.started))

    @property
    def _process(self) -> tuple[str, int, int]:
        return self.machine, self.process, self.started


_held: dict[str, Writer] = {}  # the leases of this process, by the address of the store of the record


@contextmanager
def leased(store: UnitStore, run: str, above: int = 0) -> Iterator[Writer]:
    """Be the writer of the run called `run`, whose record is in `store`, during the block.

    Waits for at most LEASE_SECONDS if the writer before may have ended. Its number will be above `above`.

    Raises:
        StorageError: another process is the writer; the message names that process.
        OSError: the store does not answer, or cannot be written.
    """
    writer, version = _acquire(store, run, above)
    lease = _Lease(store, run, writer, version)
    _held[str(store)] = writer
    lease.start()
    try:
        yield writer
    finally:
        del _held[str(store)]
        lease.release()


def writer_here(store: UnitStore) -> Writer | None:
    """This process, if it is the writer whose record is in `store`, or was it until it was suspended."""
    writer = _held.get(str(store))
    return writer if writer and writer.process == os.getpid() else None  # a forked process is not the writer


def recorded_writer(store: UnitStore) -> Writer | None:
    """The writer whose record is in `store`, which may have ended."""
    return _read(store)[0]


def is_leased(store: UnitStore) -> bool:
    """Whether a process is the writer now. A writer that died on another machine counts until another one follows."""
    found = recorded_writer(store)
    return found is not None and not found.is_out_of_date()


@contextmanager
def fence(store: UnitStore, run: str, writer: Writer | None) -> Iterator[None]:
    """A context for changes that only the process which `writer` describes may make.

    On a file system no other process can become the writer during the block. None is a run that never had a writer.

    Raises:
        StorageError: another process has become the writer; the message names that process.
    """
    with store.records_locked():
        found = recorded_writer(store)
        if found and not found.is_same(writer):
            raise late(run, str(found))
        yield


def late(run: str, writer: str) -> StorageError:
    """The error of a process that works for an earlier writer of the run called `run` than `writer`."""
    return StorageError(f"run {run} is being trained by {writer}; this process can store nothing more of it")


class _Lease:
    """A lease that a thread renews until it is released or lost."""

    def __init__(self, store: UnitStore, run: str, writer: Writer, version: str) -> None:
        self._store, self._run, self._writer, self._version = store, run, writer, version
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease of {run}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def release(self) -> None:
        """End the renewal, and release the lease unless it is lost or the store does not answer."""
        self._end.set()
        self._thread.join(RENEWAL_SECONDS)
        if not self._thread.is_alive():
            with suppress(OSError, StorageError):
                self._write(replace(self._writer, released=True))

    def _renew(self) -> None:
        while not self._end.wait(RENEWAL_SECONDS):
            # An error is no loss: other processes wait for LEASE_SECONDS, and the next renewal may succeed.
            with suppress(OSError, StorageError):
                if not self._write(replace(self._writer, renewals=self._writer.renewals + 1)):
                    return

    def _write(self, writer: Writer) -> bool:
        """Replace the record. Returns whether this process is still the writer."""
        version = self._store.write_record(RECORD, _text(writer), self._version)
        if not version:
            found, version = _read(self._store)
            if found and not writer.is_same(found):
                _log.warning("%s", late(self._run, str(found)))
                return False
            version = self._store.write_record(RECORD, _text(writer), version)
        self._writer, self._version = writer, version
        return True


def _acquire(store: UnitStore, run: str, above: int) -> tuple[Writer, str]:
    """Write the record of this process, and return it with its version."""
    found, version = _read(store)
    if found and not _is_free(store, found):
        found, version = _wait_for_end(store, run, found, version)
    writer = Writer(
        max(found.number if found else 0, above) + 1,
        os.getpid(),
        _start_of(os.getpid()),
        _machine(),
        socket.gethostname(),
        time.strftime("%Y-%m-%d %H:%M:%S"),
    )
    version = store.write_record(RECORD, _text(writer), version)
    if not version:
        raise _refused(run, recorded_writer(store))
    return writer, version


def _wait_for_end(store: UnitStore, run: str, found: Writer, version: str) -> tuple[Writer | None, str]:
    """Wait until the lease of `found` ends, whose record has that `version`; returns the newest record.

    Raises:
        StorageError: the record is renewed, so its writer lives.
    """
    _log.warning(
        "run %s was last trained by %s; its lease ends in %.0f seconds, unless that process renews it; waiting",
        *(run, found, LEASE_SECONDS),
    )
    began = time.monotonic()
    while True:
        waited = time.monotonic() - began
        newest, its_version = _read(store)
        if newest is None or _is_free(store, newest):
            return newest, its_version
        if its_version != version:
            raise _refused(run, newest)
        if waited >= LEASE_SECONDS:
            return newest, its_version
        time.sleep(RENEWAL_SECONDS / 10)


def _refused(run: str, found: Writer | None) -> StorageError:
    return StorageError(
        f"run {run} is being trained by {found or 'another process'}; its lease ends {LEASE_SECONDS:.0f} seconds after "
        "it stops; wait for it, stop it, or start a run of your own"
    )


def _is_free(store: UnitStore, found: Writer) -> bool:
    """Whether the run can have another writer than `found` at once."""
    # This process was the writer of the run before, and could not release its lease.
    here = (_machine(), os.getpid(), _start_of(os.getpid()))
    was_here = _machine() != "" and found._process == here and writer_here(store) is None
    return found.is_out_of_date() or was_here


def _read(store: UnitStore) -> tuple[Writer | None, str]:
    """The record and its version. A record that a power loss has damaged counts as none."""
    text, version = store.read_record(RECORD)
    try:
        found = json.loads(text)
        return Writer(**{field.name: found[field.name] for field in fields(Writer)}), version
    except (ValueError, KeyError, TypeError):
        return None, version


def _text(writer: Writer) -> bytes:
    return json.dumps(asdict(writer), indent=1).encode() + b"\n"


@cache
def _machine() -> str:
    """What identifies the processes that this one can observe: the boot of the machine, and the PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _is_running(process: int, started: int) -> bool:
    """Whether the process of that id still runs which was started then."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # /proc may hide processes of other users
        return True
    return _start_of(process) in (started, 0)


def _start_of(process: int) -> int:
    """Start of a process in clock ticks since the boot; -1 if it has ended, 0 if the system does not reveal it."""
    try:
        state, *rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return -1 if state in "ZX" else int(rest[18])
