"""Where things can be kept, written as a URL."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

_BUCKET = re.compile("[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def check_url(url: str) -> None:
    """Raise a ValueError that says what is wrong with `url` and what is allowed, if units cannot be kept there."""
    if is_local(url):
        directory_of(url)
    else:
        bucket_and_prefix(url)


def is_local(url: str) -> bool:
    """Whether `url` is of a file system, and not of an object store.

    Raises:
        ValueError: it is of neither.
    """
    scheme = url.partition(":")[0] if ":" in url else ""
    if scheme not in ("", "file", "s3"):
        raise ValueError(f"whose scheme {scheme} is unknown; write file:///DIRECTORY or s3://BUCKET/PREFIX")
    return scheme != "s3"


def directory_of(url: str) -> Path:
    """The directory of a file:// URL, or of an absolute path.

    Raises:
        ValueError: it is none.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ValueError(f"which is no URL ({error}); write file:///DIRECTORY or s3://BUCKET/PREFIX") from None
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or parts.query or parts.fragment:
        raise ValueError("which is no directory of this machine; write file:///DIRECTORY or s3://BUCKET/PREFIX")
    return Path(unquote(parts.path))


def bucket_and_prefix(url: str) -> tuple[str, str]:
    """The bucket of an s3:// URL, and the prefix of the keys in it.

    Raises:
        ValueError: it names none.
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
            f"whose prefix {prefix!r} cannot be used: it has letters, digits, and . _ - / between them; "
            "write s3://BUCKET/PREFIX"
        )
    return bucket, prefix
