"""Units on S3-compatible object storage.

    <kind>/00042/attempt-<unique>/<file>     the files of one attempt to make the unit, uploaded first
    <kind>/00042/manifest.json               names the attempt that counts; created or replaced on a condition

Of two writers of a unit one wins: the store lets only that one create the manifest, or replace the manifest that
both had seen before they began. A unit is there if its manifest is. What a killed writer left of an attempt is
removed with the next commit of that cycle, or when the cycle is pruned.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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
from storage.units.store import UnitStore, cycles_in
from storage.units.unit import MANIFEST, Unit, check_files, cycle_name, manifest_text, parse_manifest
from storage.urls import bucket_and_prefix

RETRY_SECONDS = 60.0  # for so long a store that is away is asked again, as MLflow is
TIDY_SECONDS = 2.0  # and for so long to remove what is left in vain
CLAIMS = 3  # requests on a condition are not repeated by obstore once they may have been heard
REQUEST_SECONDS = 300.0  # for one request with its data
AT_ONCE = 8  # files on their way

_ATTEMPT = re.compile("attempt-[0-9a-f]{32}")
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class _Committed:
    """A manifest that stands in the store: its unit, the attempt it names, and its ETag."""

    unit: Unit
    attempt: str
    etag: str


@dataclass(frozen=True)
class S3UnitStore(UnitStore):
    """The objects below an s3:// URL; copies of units that were made or read here are kept in `cache`."""

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
        """Its s3:// URL."""
        return self.address

    def names(self) -> list[str]:
        """Names that keys have next after this place's."""
        with self._requesting("listed"):
            found: Any = obstore.list_with_delimiter(self._store, self._key())
        return sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"])

    def version(self, cycle: int) -> str:
        """The ETag of the manifest that stands there, or nothing."""
        with self._requesting("read", cycle_name(cycle)):
            try:
                return str(obstore.head(self._store, self._key(cycle_name(cycle), MANIFEST))["e_tag"])
            except FileNotFoundError:
                return ""

    def publish(self, unit: Unit, version: str) -> Unit:
        """Upload the files as an attempt, and create or replace the manifest that makes them the unit."""
        here, attempt = cycle_name(unit.cycle), f"attempt-{uuid.uuid4().hex}"
        try:
            self._upload(unit, attempt)
            # Listed before the manifest is put, for whoever uploaded these can then not put one any more.
            left = [key for key in self._keys(here) if f"/{attempt}/" not in key and not key.endswith(f"/{MANIFEST}")]
        except BaseException:
            self._remove_attempt(here, attempt)
            raise
        committed = self._commit_manifest(unit, attempt, version)
        if committed is unit:  # else the attempt that counts may be among those
            with suppress(OSError):  # the unit is in its place, whatever becomes of the rest
                self._with_short_retries._delete(left)
        return self._put_in_cache(committed)

    def open(self, cycle: int, known: str = "", *, from_cache: bool = True) -> Unit | None:
        """The unit with its files in the cache, fetched unless they are there and whole."""
        tried = ""
        while found := self._read(cycle):
            copy = self._cached(found.unit)
            if from_cache and (copy.directory.is_dir() if copy.digest == known else _is_whole(copy)):
                return copy
            try:
                return self._fetch(found.unit, found.attempt)
            except CorruptUnitError:
                if tried == found.etag:  # else it may have been replaced meanwhile
                    raise
                tried = found.etag
        return None

    def cycles(self) -> list[int]:
        """Numbers of the cycles that have a manifest."""
        below = self._relative(self._keys())
        return cycles_in(name.removesuffix(f"/{MANIFEST}") for name in below if name.endswith(f"/{MANIFEST}"))

    def discard(self, cycle: int) -> None:
        """Delete the manifest, and then all files of whatever attempt."""
        self._discard(self._keys(cycle_name(cycle)))

    def prune(self, before: int, spared: int | None = None) -> None:
        """Discard cycles, with what killed writers left of them."""
        keys: dict[int, list[str]] = {}
        for key, name in zip(found := self._keys(), self._relative(found), strict=True):
            for cycle in cycles_in([name.partition("/")[0]]):
                keys.setdefault(cycle, []).append(key)
        for cycle in sorted(keys):
            if cycle < before and cycle != spared:
                self._discard(keys[cycle])

    def put_file(self, name: str, file: Path) -> None:
        """Upload it."""
        with self._requesting("written", name):
            obstore.put(self._store, self._key(name), file)
        file.unlink()

    # ---------------------------------------------------------------- the protocol

    def _upload(self, unit: Unit, attempt: str) -> None:
        here = cycle_name(unit.cycle)

        def put(name: str) -> None:
            with self._requesting("written", here, attempt, name):
                obstore.put(self._store, self._key(here, attempt, name), unit.directory / name)

        _in_parallel(put, unit.files)

    def _commit_manifest(self, unit: Unit, attempt: str, version: str) -> Unit:
        """Make `attempt` the one that counts; or return the same unit by a repetition of the same task.

        Raises:
            StorageError: another writer was faster.
            OSError: the store does not answer; the attempt may count all the same, so it is left there.
        """
        here = cycle_name(unit.cycle)
        text = manifest_text(unit, attempt=attempt).encode()
        mode: Any = {"e_tag": version} if version else "create"
        for tries_left in reversed(range(CLAIMS)):
            try:
                obstore.put(self._store, self._key(here, MANIFEST), text, mode=mode)
                return unit
            except (AlreadyExistsError, PreconditionError):
                failure = None
            except (BaseError, OSError) as error:
                failure = error
            # Whatever was answered, the answer to an earlier try may have been lost: what stands there tells.
            found = self._read(unit.cycle)
            if found and found.attempt == attempt:
                return unit
            if failure is None:
                break
            if not tries_left:
                raise self._failed("written", failure, here, MANIFEST)
        self._remove_attempt(here, attempt)
        if found and found.unit.digest == unit.digest and _flow_run(found.unit) == _flow_run(unit):
            return replace(found.unit, directory=unit.directory)
        by = _flow_run(found.unit) if found else ""
        raise StorageError(
            f"{self}/{here} was committed meanwhile by {f'flow run {by}' if by else 'another process'}: the run is "
            "being trained twice; stop one of the two, and go on with `dqn train --resume`"
        )

    def _read(self, cycle: int) -> _Committed | None:
        """The manifest that stands there; `directory` of its unit is of no meaning yet."""
        here, address = cycle_name(cycle), f"{self}/{cycle_name(cycle)}/{MANIFEST}"
        with self._requesting("read", here, MANIFEST):
            try:
                got = obstore.get(self._store, self._key(here, MANIFEST))
                text, etag = bytes(got.bytes()), str(got.meta["e_tag"])
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return None
        unit, manifest = parse_manifest(text, self.cache, address)
        attempt = str(manifest.get("attempt"))
        if not _ATTEMPT.fullmatch(attempt):
            raise CorruptUnitError(f"{address} is not a manifest: it names no attempt")
        return _Committed(unit, attempt, etag)

    def _fetch(self, unit: Unit, attempt: str) -> Unit:
        """Bring the files of a unit into the cache, checked."""
        here = cycle_name(unit.cycle)
        place = f"{self}/{here}/{attempt}"
        stage = self.staging / f"fetch-{unit.kind}-{here}-{uuid.uuid4().hex}"
        stage.mkdir(parents=True)

        def get(name: str) -> None:
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            with self._requesting("read", here, attempt, name):
                try:
                    got = obstore.get(self._store, self._key(here, attempt, name))
                except FileNotFoundError:
                    raise CorruptUnitError(f"{place}/{name} is missing") from None
                with (stage / name).open("wb") as file:
                    for chunk in got.stream(min_chunk_size=8 * 1024 * 1024):
                        file.write(chunk)

        try:
            _in_parallel(get, unit.files)
            unit = replace(unit, directory=stage)
            check_files(unit, place)
            return self._put_in_cache(unit)
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def _discard(self, keys: list[str]) -> None:
        self._delete([key for key in keys if key.endswith(f"/{MANIFEST}") and not _ATTEMPT.search(key)])
        self._delete([key for key in keys if _ATTEMPT.search(key)])

    def _remove_attempt(self, here: str, attempt: str) -> None:
        """Remove what is there of an attempt that cannot count; what resists is left for the next commit."""
        with suppress(OSError):
            self._with_short_retries._delete(self._with_short_retries._keys(here, attempt))

    # ---------------------------------------------------------------- the cache

    def _cached(self, unit: Unit) -> Unit:
        """The unit with its files in the cache, where they may be or not."""
        return replace(unit, directory=self.cache / f"{cycle_name(unit.cycle)}-{unit.digest}")

    def _put_in_cache(self, unit: Unit) -> Unit:
        """Move the checked files of a unit into the cache, and let go of what is no unit's any more."""
        copy = self._cached(unit)
        self.cache.mkdir(parents=True, exist_ok=True)
        if not _is_whole(copy):  # another process may be reading one that is
            discard(copy.directory, self.staging)
            try:
                unit.directory.rename(copy.directory)
            except OSError:  # or another one has just put it there
                if not _is_whole(copy):
                    raise
        with suppress(OSError):
            self._evict(copy.directory.name)
        return copy

    def _evict(self, newest: str) -> None:
        """Remove copies of units that are not there any more, or that the one called `newest` has replaced."""
        cycle, *there = newest.partition("-")[0], *map(cycle_name, self.cycles())
        for name in sorted(entry.name for entry in self.cache.iterdir()):
            its_cycle = name.partition("-")[0]
            if name != newest and (its_cycle == cycle or its_cycle not in there):
                shutil.rmtree(self.cache / name, ignore_errors=True)

    # ---------------------------------------------------------------- requests

    @property
    def _with_short_retries(self) -> S3UnitStore:
        """This place for requests that nothing depends on."""
        return replace(self, retry_seconds=min(self.retry_seconds, TIDY_SECONDS))

    @property
    def _store(self) -> S3Store:
        bucket, _ = bucket_and_prefix(self.address)
        return _open_store(bucket, os.environ.get("AWS_ENDPOINT_URL", ""), self.retry_seconds)

    def _key(self, *names: str) -> str:
        return "/".join(filter(None, [bucket_and_prefix(self.address)[1], *names]))

    def _keys(self, *names: str) -> list[str]:
        """All keys below."""
        with self._requesting("listed", *names):
            found: Any = obstore.list(self._store, self._key(*names)).collect()
        return [str(meta["path"]) for meta in found]

    def _relative(self, keys: Iterable[str]) -> list[str]:
        """What of the keys is below this place."""
        return [key.removeprefix(self._key()).lstrip("/") for key in keys]

    def _delete(self, keys: list[str]) -> None:
        if keys:
            with self._requesting("removed"):
                obstore.delete(self._store, keys)

    @contextmanager
    def _requesting(self, what: str, *names: str) -> Iterator[None]:
        """Tell a failed request in one line, as an error of the disk is told."""
        try:
            yield
        except BaseError as error:
            raise self._failed(what, error, *names) from None
        except FileNotFoundError as error:
            if error.filename:  # on this machine
                raise
            raise self._failed(what, error, *names) from None

    def _failed(self, what: str, error: Exception, *names: str) -> OSError:
        return OSError(f"{'/'.join([self.address, *names])} cannot be {what}: {_reason(error)}")


@lru_cache(maxsize=8)
def _open_store(bucket: str, endpoint: str, retry_seconds: float) -> S3Store:
    """The bucket, with the credentials of the environment.

    Raises:
        ValueError: the endpoint is no URL.
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
    """What the store said, or why nothing was heard of it, in one line and without secrets."""
    text = str(error)
    endpoint = without_password(os.environ.get("AWS_ENDPOINT_URL") or "the store")
    first = without_password(text.partition("\n")[0])
    if told := re.search("<Code>(.*?)</Code>.*?<Message>(.*?)</Message>", text, re.DOTALL):
        reason = f"{told[1]}: {told[2]}"
    elif status := re.search(r"status code: (\d+ [\w ]+)", first):
        reason = f"{endpoint} answers {status[1].strip()}"
    elif "HTTP error" in first:
        reason = f"{endpoint} does not answer ({first.rpartition(' - ')[2].strip(' .')})"
    else:
        reason = first.removeprefix("Generic S3 error: ")
    if re.search("40[13] |Denied|AccessKey|Signature", reason):
        reason += "; see to AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return reason


def _flow_run(unit: Unit) -> str:
    return str(unit.made.get("by", {}).get("prefect_flow_run_id", ""))


def _is_whole(unit: Unit) -> bool:
    if not unit.directory.is_dir():
        return False
    try:
        check_files(unit, str(unit.directory))
    except (CorruptUnitError, OSError):
        return False
    return True


def _in_parallel(work: Callable[[_Item], None], items: Iterable[_Item]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(work, items):
            pass
