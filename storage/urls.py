"""URLs of the places where units can be stored."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

_BUCKET = re.compile("[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")

REGISTERED_MODEL = "models:/"  # the addresses of registered models begin with it


def check_url(url: str) -> None:
    """Raise a ValueError if units cannot be stored at `url`.

    The messages of this module complete a sentence that begins with the URL: they say what is wrong, and what to write.
    """
    if is_local(url):
        directory_of(url)
    else:
        bucket_and_prefix(url)


def is_local(url: str) -> bool:
    """Whether `url` is on a file system, and not in an object store.

    Raises:
        ValueError: it is neither.
    """
    scheme = url.partition(":")[0] if ":" in url else ""
    if scheme not in ("", "file", "s3"):
        raise ValueError(f"whose scheme {scheme} is unknown; write file:///DIRECTORY or s3://BUCKET/PREFIX")
    return scheme != "s3"


def directory_of(url: str) -> Path:
    """The directory of a file:// URL, or of an absolute path.

    Raises:
        ValueError: it is neither of these.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ValueError(f"which is not a URL ({error}); write file:///DIRECTORY or s3://BUCKET/PREFIX") from None
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or parts.query or parts.fragment:
        raise ValueError("which is not a directory of this machine; write file:///DIRECTORY or s3://BUCKET/PREFIX")
    return Path(unquote(parts.path))


def bucket_and_prefix(url: str) -> tuple[str, str]:
    """The bucket of an s3:// URL, and the prefix of the keys in it.

    Raises:
        ValueError: it names no valid bucket, or an invalid prefix.
    """
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/")
    if not url.startswith("s3://") or not bucket:
        raise ValueError("which names no bucket; write s3://BUCKET/PREFIX")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(
            "whose bucket cannot exist: a name has 3 to 63 lower-case letters, digits, dots and hyphens; "
            "write s3://BUCKET/PREFIX"
        )
    if prefix and (re.search(r"[^\w./ -]", prefix) or {"", ".", ".."} & set(prefix.split("/"))):
        raise ValueError(
            f"whose prefix {prefix!r} cannot be used: it has letters, digits, . _ and - with single / between; "
            "write s3://BUCKET/PREFIX"
        )
    return bucket, prefix
