"""Units on S3-compatible object storage.

    <kind>/00042/attempt-<unique>/<file>     the files of one attempt to commit the unit, uploaded first
    <kind>/00042/manifest.json               names the attempt that is committed; written conditionally

A unit is committed if its manifest exists. Of two writers of a unit one wins, because S3 creates the manifest only if
none exists, or replaces it only if it still has the ETag that the writer read before it began. The files of an attempt
that lost, or whose writer was killed, are removed by the next commit of that cycle, or when the cycle is pruned.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from storage.durable import discard
from storage.errors import CorruptUnitError, StorageError
from storage.settings import without_password
from storage.units.store import Fence, UnitStore, cycles_in
from storage.units.unit import MANIFEST, Unit, check_files, cycle_name, manifest_text, parse_manifest
from storage.urls import bucket_and_prefix

RETRY_SECONDS = 60.0  # how long a request to an unreachable store is retried; about as long as MLflow's requests
CLEANUP_RETRY_SECONDS = 2.0  # the same for the removal of files that are no longer needed
CONDITIONAL_TRIES = 3  # obstore does not retry a conditional request that the server may have received
REQUEST_SECONDS = 300.0  # timeout of one request, its data included
PARALLEL_FILES = 8  # files in transfer at the same time

_ATTEMPT = re.compile("attempt-[0-9a-f]{32}")
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class _Committed:
    """A manifest in the store: its unit, the attempt that it names, and its ETag."""

    unit: Unit
    attempt: str
    etag: str


@dataclass(frozen=True)
class S3UnitStore(UnitStore):
    """Units below an s3:// URL. The local directory `cache` has copies of the units that were committed or read."""

    address: str
    staging: Path
    cache: Path
    retry_seconds: float = RETRY_SECONDS

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str) -> S3UnitStore:
        return replace(self, address=f"{self.address.rstrip('/')}/{name}", cache=self.cache / name)

    @property
    def url(self) -> str:
        """The s3:// URL."""
        return self.address

    def names(self) -> list[str]:
        """Names that follow the prefix of this store in keys."""
        with self._requesting("listed"):
            found: Any = obstore.list_with_delimiter(self._store, self._key())
        return sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"])

    def version(self, cycle: int) -> str:
        """The ETag of the committed manifest; empty if there is none."""
        with self._requesting("read", cycle_name(cycle)):
            try:
                return str(obstore.head(self._store, self._key(cycle_name(cycle), MANIFEST))["e_tag"])
            except FileNotFoundError:
                return ""

    def publish(self, unit: Unit, version: str, fence: Fence = nullcontext) -> Unit:
        """Upload the files as an attempt, and then write the manifest that commits it."""
        folder, attempt = cycle_name(unit.cycle), f"attempt-{uuid.uuid4().hex}"
        try:
            self._upload(unit, attempt)
            # Listed before the manifest is written: the writers of these files cannot write theirs after that.
            left = [key for key in self._keys(folder) if f"/{attempt}/" not in key and not key.endswith(f"/{MANIFEST}")]
            with fence():  # left before the manifest is written, because a request may be repeated for a minute
                pass
        except BaseException:
            self._remove_attempt(folder, attempt)
            raise
        committed = self._commit_manifest(unit, attempt, version)
        if committed is unit:  # otherwise the committed attempt may be among `left`
            with suppress(OSError):  # the unit is committed, whether or not the rest can be removed
                self._with_short_retries._delete(left)
        return self._put_in_cache(committed)

    def open(self, cycle: int, known: str = "", *, from_cache: bool = True) -> Unit | None:
        """The unit with its files in the cache; they are downloaded unless the cache has them intact."""
        tried = ""
        while found := self._read(cycle):
            copy = self._cached(found.unit)
            if from_cache and (copy.directory.is_dir() if copy.digest == known else _is_intact(copy)):
                return copy
            try:
                return self._fetch(found.unit, found.attempt)
            except CorruptUnitError:
                if tried == found.etag:  # otherwise it may have been replaced in the meantime
                    raise
                tried = found.etag
        return None

    def cycles(self) -> list[int]:
        """Numbers of the cycles that have a manifest."""
        below = self._relative(self._keys())
        return cycles_in(name.removesuffix(f"/{MANIFEST}") for name in below if name.endswith(f"/{MANIFEST}"))

    def discard(self, cycle: int) -> None:
        """Delete the manifest, and then the files of all attempts."""
        self._discard(self._keys(cycle_name(cycle)))

    def prune(self, before: int, spared: int | None = None) -> None:
        """Discard cycles before number `before`, with the files that killed writers left of them."""
        keys: dict[int, list[str]] = {}
        for key, name in zip(found := self._keys(), self._relative(found), strict=True):
            for cycle in cycles_in([name.partition("/")[0]]):
                keys.setdefault(cycle, []).append(key)
        for cycle in sorted(keys):
            if cycle < before and cycle != spared:
                self._discard(keys[cycle])

    def put_file(self, name: str, file: Path) -> None:
        """Upload `file`, and remove it."""
        with self._requesting("written", name):
            obstore.put(self._store, self._key(name), file)
        file.unlink()

    def read_record(self, name: str) -> tuple[bytes, str]:
        """The content of the object, and its ETag."""
        with self._requesting("read", name):
            try:
                got = obstore.get(self._store, self._key(name))
                return bytes(got.bytes()), str(got.meta["e_tag"])
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return b"", ""

    def write_record(self, name: str, text: bytes, version: str) -> str:
        """Write the object conditionally, with short retries."""
        return self._with_short_retries._put_conditionally(name, text, version)

    def records_locked(self) -> nullcontext[None]:
        """No lock."""
        return nullcontext()

    # ---------------------------------------------------------------- the protocol

    def _upload(self, unit: Unit, attempt: str) -> None:
        folder = cycle_name(unit.cycle)

        def put(name: str) -> None:
            with self._requesting("written", folder, attempt, name):
                obstore.put(self._store, self._key(folder, attempt, name), unit.directory / name)

        _in_parallel(put, unit.files)

    def _commit_manifest(self, unit: Unit, attempt: str, version: str) -> Unit:
        """Commit `attempt`, or return the same unit if another try of the same flow run has committed it.

        Raises:
            StorageError: another writer was faster.
            OSError: the store does not answer. The attempt may be committed, so its files stay.
        """
        folder = cycle_name(unit.cycle)
        text = manifest_text(unit, attempt=attempt).encode()
        if self._put_conditionally(f"{folder}/{MANIFEST}", text, version):
            return unit
        found = self._read(unit.cycle)
        self._remove_attempt(folder, attempt)
        if found and found.unit.digest == unit.digest and _flow_run(found.unit) == _flow_run(unit):
            return replace(found.unit, directory=unit.directory)
        by = _flow_run(found.unit) if found else ""
        raise StorageError(
            f"{self}/{folder} was committed meanwhile by {f'flow run {by}' if by else 'another process'}: the run is "
            "being trained twice; stop one of the two, and continue with `dqn train --resume`"
        )

    def _read(self, cycle: int) -> _Committed | None:
        """The committed manifest. The `directory` of its unit is not valid yet."""
        folder, address = cycle_name(cycle), f"{self}/{cycle_name(cycle)}/{MANIFEST}"
        text, etag = self.read_record(f"{folder}/{MANIFEST}")
        if not etag:
            return None
        unit, manifest = parse_manifest(text, self.cache, address)
        attempt = str(manifest.get("attempt"))
        if not _ATTEMPT.fullmatch(attempt):
            raise CorruptUnitError(f"{address} is not a manifest: it names no attempt")
        return _Committed(unit, attempt, etag)

    def _put_conditionally(self, name: str, text: bytes, version: str) -> str:
        """Create the object `name`, or replace it if its ETag is `version`.

        Returns:
            The new ETag; empty if another process was faster.

        Raises:
            OSError: the store does not answer. The object may have been written.
        """
        mode: Any = {"e_tag": version} if version else "create"
        for tries_left in reversed(range(CONDITIONAL_TRIES)):
            try:
                return str(obstore.put(self._store, self._key(name), text, mode=mode)["e_tag"])
            except (AlreadyExistsError, PreconditionError):
                failure = None
            except (BaseError, OSError) as error:
                failure = error
            # The response to an earlier try may have been lost, so only the object shows the result.
            found, etag = self.read_record(name)
            if found == text:
                return etag
            if failure and not tries_left:
                raise self._failed("written", failure, name)
            if failure is None:
                break
        return ""

    def _fetch(self, unit: Unit, attempt: str) -> Unit:
        """Download the files of a unit, check them, and put them in the cache."""
        folder = cycle_name(unit.cycle)
        address = f"{self}/{folder}/{attempt}"
        stage = self.staging / f"fetch-{unit.kind}-{folder}-{uuid.uuid4().hex}"
        stage.mkdir(parents=True)

        def get(name: str) -> None:
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            with self._requesting("read", folder, attempt, name):
                try:
                    got = obstore.get(self._store, self._key(folder, attempt, name))
                except FileNotFoundError:
                    raise CorruptUnitError(f"{address}/{name} is missing") from None
                with (stage / name).open("wb") as file:
                    for chunk in got.stream(min_chunk_size=8 * 1024 * 1024):
                        file.write(chunk)

        try:
            _in_parallel(get, unit.files)
            unit = replace(unit, directory=stage)
            check_files(unit, address)
            return self._put_in_cache(unit)
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def _discard(self, keys: list[str]) -> None:
        self._delete([key for key in keys if key.endswith(f"/{MANIFEST}") and not _ATTEMPT.search(key)])
        self._delete([key for key in keys if _ATTEMPT.search(key)])

    def _remove_attempt(self, folder: str, attempt: str) -> None:
        """Remove the files of an attempt that cannot be committed; the next commit tries it again."""
        with suppress(OSError):
            self._with_short_retries._delete(self._with_short_retries._keys(folder, attempt))

    # ---------------------------------------------------------------- the cache

    def _cached(self, unit: Unit) -> Unit:
        """The unit with its directory in the cache, which may or may not exist."""
        return replace(unit, directory=self.cache / f"{cycle_name(unit.cycle)}-{unit.digest}")

    def _put_in_cache(self, unit: Unit) -> Unit:
        """Move the checked files of a unit into the cache, and evict copies that are out of date."""
        copy = self._cached(unit)
        self.cache.mkdir(parents=True, exist_ok=True)
        if not _is_intact(copy):  # another process may be reading an intact copy
            discard(copy.directory, self.staging)
            try:
                unit.directory.rename(copy.directory)
            except OSError:  # another process may have put its copy there
                if not _is_intact(copy):
                    raise
        with suppress(OSError):
            self._evict(copy.directory.name)
        return copy

    def _evict(self, newest: str) -> None:
        """Remove copies of units that the store no longer has, or that the copy called `newest` replaces."""
        cycle, *there = newest.partition("-")[0], *map(cycle_name, self.cycles())
        for name in sorted(entry.name for entry in self.cache.iterdir()):
            its_cycle = name.partition("-")[0]
            if name != newest and (its_cycle == cycle or its_cycle not in there):
                shutil.rmtree(self.cache / name, ignore_errors=True)

    # ---------------------------------------------------------------- requests

    @property
    def _with_short_retries(self) -> S3UnitStore:
        """This store for requests on which nothing depends."""
        return replace(self, retry_seconds=min(self.retry_seconds, CLEANUP_RETRY_SECONDS))

    @property
    def _store(self) -> S3Store:
        bucket, _ = bucket_and_prefix(self.address)
        return _open_store(bucket, os.environ.get("AWS_ENDPOINT_URL", ""), self.retry_seconds)

    def _key(self, *names: str) -> str:
        return "/".join(filter(None, [bucket_and_prefix(self.address)[1], *names]))

    def _keys(self, *names: str) -> list[str]:
        """All keys below `names`."""
        with self._requesting("listed", *names):
            found: Any = obstore.list(self._store, self._key(*names)).collect()
        return [str(meta["path"]) for meta in found]

    def _relative(self, keys: Iterable[str]) -> list[str]:
        """The keys without the prefix of this store."""
        return [key.removeprefix(self._key()).lstrip("/") for key in keys]

    def _delete(self, keys: list[str]) -> None:
        if keys:
            with self._requesting("removed"):
                obstore.delete(self._store, keys)

    @contextmanager
    def _requesting(self, action: str, *names: str) -> Iterator[None]:
        """Raise the error of a failed request as an OSError of one line, as for an error of a disk."""
        try:
            yield
        except BaseError as error:
            raise self._failed(action, error, *names) from None
        except FileNotFoundError as error:
            if error.filename:  # a local file
                raise
            raise self._failed(action, error, *names) from None

    def _failed(self, action: str, error: Exception, *names: str) -> OSError:
        return OSError(f"{'/'.join([self.address, *names])} cannot be {action}: {_reason(error)}")


@lru_cache(maxsize=8)
def _open_store(bucket: str, endpoint: str, retry_seconds: float) -> S3Store:
    """The bucket, with the credentials in the environment.

    Raises:
        ValueError: the endpoint is not a URL.
    """
    if endpoint and not re.match("https?://[^/]", endpoint):
        raise ValueError(f"AWS_ENDPOINT_URL is {without_password(endpoint)!r}; write http://HOST:PORT or https://HOST")
    return S3Store(
        bucket,
        client_options={
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=5),
            "timeout": timedelta(seconds=REQUEST_SECONDS),
        },
        retry_config={
            "max_retries": 1_000,
            "retry_timeout": timedelta(seconds=retry_seconds),
            "backoff": {"base": 2, "init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2)},
        },
    )


def _reason(error: Exception) -> str:
    """The response of the store, or why there was none, in one line and without secrets."""
    text = str(error)
    endpoint = without_password(os.environ.get("AWS_ENDPOINT_URL") or "the store")
    first = without_password(text.partition("\n")[0])
    if response := re.search("<Code>(.*?)</Code>.*?<Message>(.*?)</Message>", text, re.DOTALL):
        reason = f"{response[1]}: {response[2]}"
    elif status := re.search(r"status code: (\d+ [\w ]+)", first):
        reason = f"{endpoint} answers {status[1].strip()}"
    elif "HTTP error" in first:
        reason = f"{endpoint} does not answer ({first.rpartition(' - ')[2].strip(' .')})"
    else:
        reason = first.removeprefix("Generic S3 error: ")
    if re.search("40[13] |Denied|AccessKey|Signature", reason):
        reason += "; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return reason


def _flow_run(unit: Unit) -> str:
    return str(unit.made.get("by", {}).get("prefect_flow_run_id", ""))


def _is_intact(unit: Unit) -> bool:
    if not unit.directory.is_dir():
        return False
    try:
        check_files(unit, str(unit.directory))
    except (CorruptUnitError, OSError):
        return False
    return True


def _in_parallel(work: Callable[[_Item], None], items: Iterable[_Item]) -> None:
    with ThreadPoolExecutor(PARALLEL_FILES) as pool:
        for _ in pool.map(work, items):
            pass
