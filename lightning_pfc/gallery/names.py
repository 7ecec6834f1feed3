"""What both kinds of store allow as names, notes and pooling, and say of what is there or has gone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lightning_pfc.gallery.errors import GalleryError, IdentityExistsError, UnknownIdentityError

REMOVED = "null"
"""Stands in place of an answer whose pictures have been removed, and says whose they were no more."""


POOLINGS = ("max", "mean")
"""How the scores of an identity's pictures can become one."""


def check_pooling(pooling: str) -> None:
    """Refuse a pooling that there is not.

    Raises:
        GalleryError: then.
    """
    if pooling not in POOLINGS:
        raise GalleryError(f"pooling={pooling!r} must be 'max' or 'mean': how an identity's pictures score as one.")


def check_name(name: str) -> None:
    """Refuse a name that cannot be shown, typed, or be part of an address.

    Raises:
        GalleryError: then.
    """
    if not name or len(name) > 500 or not name.isprintable():
        raise GalleryError(f"identity {name[:80]!r} must be 1 to 500 printable characters.")
    if not name.strip() or name in (".", ".."):  # an address that ends in dots means another
        raise GalleryError(f"identity {name[:80]!r} must be more than blanks or dots.")


def unknown(name: str) -> UnknownIdentityError:
    """The error for a name that nobody has; to be raised by the caller."""
    return UnknownIdentityError(f"there is no identity {name[:200]!r} in the gallery; enrol it first.")


def exists_already(name: str, or_else: str = "add pictures to it, remove it, or ") -> IdentityExistsError:
    """The error for a name that is taken, and what there is to do but another name; to be raised by the caller."""
    return IdentityExistsError(f"identity {name!r} exists already; {or_else}choose another name.")


def metadata_json(metadata: Mapping[str, Any] | None) -> str:
    """Notes as JSON.

    Raises:
        GalleryError: for what JSON has no word for.
    """
    try:
        return json.dumps(metadata or {}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise GalleryError(f"metadata must be plain JSON values: {error}.") from error


def answer_of(key: str, request: str, kept_request: str, kept_answer: str) -> str:
    """The kept answer of a request that came with an idempotency key.

    Raises:
        GalleryError: the key was used for another request.
        UnknownIdentityError: what it brought has been removed.
    """
    if kept_request != request:
        raise GalleryError(f"idempotency key {key[:80]!r} was used for another request; choose a new one.")
    if kept_answer == REMOVED:
        raise UnknownIdentityError(
            f"what came with idempotency key {key[:80]!r} was enrolled, and has been removed since; choose a new key "
            "to enrol it again."
        )
    return kept_answer
