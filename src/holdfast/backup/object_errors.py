"""Places in object stores, and what of a library's words may be repeated: no secret is.

Invariants:
    * A text that may hold credentials is not shown: of a URL that is refused its scheme at most, of a library that
      could not be opened nothing, and of its other errors neither queries nor what stands before an ``@``.
    * A panic of a library, which is no ``Exception``, is an error like any other.
"""

from __future__ import annotations

import os
import re
from typing import Final

from ..errors import InternalError, InvalidInputError

__all__ = ["SCHEMES", "check_environment", "check_url", "is_panic", "panicked", "sentence", "unusable"]

SCHEMES: Final = ("s3", "gs", "az")
_URL: Final = re.compile(r"(s3|gs|az)://([A-Za-z0-9][A-Za-z0-9._-]{1,254})((?:/[A-Za-z0-9._=-]{1,255})*)/?", re.ASCII)
_SHOWN: Final = re.compile(r"(s3|gs|az|file|memory)://[A-Za-z0-9._=/ -]*", re.ASCII | re.IGNORECASE)
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,15}", re.ASCII)
_PREFIXES: Final = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
_WHO: Final = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL",
    "gs": "GOOGLE_SERVICE_ACCOUNT",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_LINES_ALLOWED: Final = "GOOGLE_SERVICE_ACCOUNT_KEY"
"""JSON, which may be written in lines."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_PANIC: Final = "PanicException"


def check_url(url: str) -> str:
    """``url``, which names a place in an object store. Raises ``InvalidInputError``; it never repeats a secret."""
    match = _URL.fullmatch(url)
    if match is None or {".", ".."} & set(match[3].split("/")):
        raise InvalidInputError(
            "this is no place in an object store",
            found=_shown(url),
            remedy="write it as s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX; keys come from the "
            "environment (docs/BACKUP.md)",
        )
    return url.rstrip("/")


def _shown(url: str) -> str:
    """``url`` if nothing in it can be a credential, else its scheme."""
    if _SHOWN.fullmatch(url) is not None:
        return url[:80]
    scheme = url.partition("://")[0]
    return f"{scheme if _SCHEME.fullmatch(scheme) else '...'}://..."


def check_environment(scheme: str) -> None:
    """The variables that say who we are can go into requests and messages. Raises ``InvalidInputError``."""
    for name, value in os.environ.items():
        if not name.startswith(_PREFIXES[scheme]):
            continue
        if _CONTROL.search(value) and name != _LINES_ALLOWED:
            raise InvalidInputError(
                "a variable of the environment holds a line break or another control character",
                variable=name,
                remedy="set it without: $(cat FILE) leaves the last line break out, a file of variables may not",
            )
        if "@" in value and ("ENDPOINT" in name or "URL" in name):
            raise InvalidInputError(
                "the endpoint of the object store holds a name or a password",
                variable=name,
                remedy="leave out what stands before the '@': errors and logs repeat endpoints",
            )


def unusable(url: str) -> InvalidInputError:
    """What is raised when the library does not open a store. Its own words may hold the credentials."""
    return InvalidInputError(
        "the object store cannot be used with these variables of the environment",
        path=url,
        remedy=f"check the URL and what says who you are: {_WHO[url.partition(':')[0]]} (docs/BACKUP.md)",
    )


def sentence(error: BaseException) -> str:
    """What the library says, without its inside and without what may be a secret in URLs."""
    text = " ".join(str(error).partition("Debug source")[0].split())
    return re.sub(r"//[^ ]*@", "//...@", re.sub(r"\?\S*", "?...", text))[:300]


def is_panic(error: BaseException) -> bool:
    """True for the panic of a library written in Rust, which derives from ``BaseException``."""
    return type(error).__name__ == _PANIC


def panicked(place: str) -> InternalError:
    """What is raised for a panic, whose text may hold anything."""
    return InternalError("the library for object stores broke down in itself", path=place)
