"""Who may do what: keys that are shown once and kept as hashes."""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_pfc.storage.whole_files import write_json

SCOPES = ("read", "enrol", "admin")
"""What a key may do: search and compare; add identities and pictures; change and delete them."""

_VERSION = 1
_LARGEST_FILE = 1 << 20


class KeyFileError(ValueError):
    """The file of keys is damaged, or a key cannot be made."""


@dataclass(frozen=True)
class Key:
    """What is kept of a key: its name, the sha256 of its secret, and what it may do."""

    name: str
    digest: str
    scopes: tuple[str, ...]


class Keys:
    """The keys of a service.

    Args:
        keys: all of them.
        needed: whether a request needs one; None: if there are any.
    """

    def __init__(self, keys: Iterable[Key] = (), *, needed: bool | None = None) -> None:
        self._keys = tuple(keys)
        self.needed = bool(self._keys) if needed is None else needed

    def __len__(self) -> int:
        return len(self._keys)

    @classmethod
    def read(cls, path: Path) -> Keys:
        """The keys of a file; none where there is no file.

        Raises:
            KeyFileError: for a file that is not ours, a link that leads nowhere, or one that cannot be read: taken for
                no file, it would open the door to everybody.
        """
        try:
            if _is_absent(path):
                return cls()
            found = path.stat()
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError(errno.EISDIR, "it is a folder", path)
            if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST_FILE:
                raise ValueError("it is no small file")
            content: Any = json.loads(path.read_text(encoding="utf-8"))
            if content["version"] != _VERSION:
                raise ValueError(f"its version is {content['version']!r}, not {_VERSION}")
            return cls(_key(entry) for entry in content["keys"])
        except OSError as error:
            raise KeyFileError(
                f"{path} cannot be read: {error.strerror or error}; mend that, or name another."
            ) from error
        except KeyError as error:
            raise KeyFileError(f"{path} is no file of keys: it has no {error}; remove it and make new keys.") from error
        except (ValueError, TypeError, RecursionError) as error:
            raise KeyFileError(f"{path} is no file of keys: {error}; remove it and make new keys.") from error

    def write(self, path: Path) -> None:
        """Keep them in a file that only its owner reads."""
        entries = [{"name": key.name, "sha256": key.digest, "scopes": list(key.scopes)} for key in self._keys]
        previous = os.umask(0o077)
        try:
            write_json(path, {"version": _VERSION, "keys": entries})
        finally:
            os.umask(previous)

    def with_new(self, name: str, scopes: Iterable[str]) -> tuple[Keys, str]:
        """With one more; also its secret, which is kept nowhere.

        Raises:
            KeyFileError: for a name that is taken or a scope that does not exist.
        """
        wanted = tuple(dict.fromkeys(scopes))
        wrong = next((scope for scope in wanted if scope not in SCOPES), None)
        if wrong is not None or not wanted:
            raise KeyFileError(f"scope {wrong or ''!r} must be one of {', '.join(SCOPES)}.")
        if not name.strip():
            raise KeyFileError(f"name {name!r} names no key; give it one with --make-key NAME.")
        if any(key.name == name for key in self._keys):
            raise KeyFileError(f"key {name!r} exists already; choose another name, or remove it first.")
        secret = f"pfc_{secrets.token_urlsafe(32)}"
        return Keys([*self._keys, Key(name, _digest(secret), wanted)]), secret

    def without(self, name: str) -> Keys:
        """Without the key of a name.

        Raises:
            KeyFileError: if there is none.
        """
        if all(key.name != name for key in self._keys):
            raise KeyFileError(
                f"there is no key {name!r}; there are {', '.join(key.name for key in self._keys) or 'none'}."
            )
        return Keys(key for key in self._keys if key.name != name)

    def find(self, secret: str) -> Key | None:
        """The key of a secret, or None; takes as long for one that is nearly right as for any other."""
        digest, found = _digest(secret), None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def _is_absent(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    return False


def _digest(secret: str) -> str:
    # a secret of 32 random bytes needs no slow hash: there is nothing to guess
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _key(entry: Any) -> Key:
    name, digest, scopes = entry["name"], entry["sha256"], entry["scopes"]
    if not isinstance(name, str) or not isinstance(digest, str) or len(digest) != 64:
        raise ValueError("a key has no name or no sha256")
    if not isinstance(scopes, list) or not set(scopes) <= set(SCOPES):
        raise ValueError(f"key {name!r} has scopes {scopes!r}")
    return Key(name, digest, tuple(scopes))
