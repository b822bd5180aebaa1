"""Choice of the store for a URL."""

from __future__ import annotations

from storage.errors import StorageError
from storage.settings import Settings
from storage.units.local_store import LocalUnitStore
from storage.units.store import UnitStore
from storage.urls import directory_of, is_local


def open_store(url: str, settings: Settings, run_id: str) -> UnitStore:
    """The store of a run at `url`, which `storage.urls.check_url` has accepted.

    Raises:
        StorageError: a package that the store needs is not installed.
    """
    if is_local(url):
        directory = directory_of(url)
        at_home = directory.is_relative_to(settings.home)
        # A rename needs both directories on the same file system.
        staging = settings.staging(run_id) if at_home else directory.parent / "staging" / directory.name
        return LocalUnitStore(directory, staging)
    try:
        # Imported here because obstore is an optional package.
        from storage.units.s3_store import S3UnitStore
    except ModuleNotFoundError as error:
        raise StorageError(
            f"{url} needs a package that is not installed ({error.name}): install this project with [s3]"
        ) from None
    return S3UnitStore(url, settings.staging(run_id), settings.cache(run_id))
