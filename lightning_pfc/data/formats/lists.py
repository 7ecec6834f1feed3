"""A text file that lists images and their identities: ``.lst`` of im2rec, TSV, CSV, or ``path label`` lines."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from typing_extensions import override

from lightning_pfc.checked import checked
from lightning_pfc.data.errors import FormatError, reading
from lightning_pfc.data.formats.base import EncodedImages, contiguous_labels
from lightning_pfc.data.formats.folder import IMAGE_SUFFIXES, read_image_file
from lightning_pfc.data.formats.label_values import refuse_no_identity, warn_of_numbers
from lightning_pfc.data.formats.lines import text_lines
from lightning_pfc.data.formats.listed_twice import warn_of_two_labels
from lightning_pfc.data.formats.patterns import Paths, nothing_at
from lightning_pfc.data.formats.texts import Texts
from lightning_pfc.storage.enclosure import Enclosure

PATH_NAMES = ("path", "image", "file", "filename", "image_path", "file_name")
LABEL_NAMES = ("label", "identity", "id", "class", "name", "person", "target")
_SEPARATORS = {".csv": "commas", ".tsv": "tabs", ".lst": "tabs"}
_NOT_FINITE = ("nan", "inf", "infinity")
MAX_LIST = 16 << 30  # bytes


@checked
class ListImages(EncodedImages):
    """Images named in a text file, one a line.

    Understood, by suffix: ``.csv`` (commas, quotes as in RFC 4180), ``.tsv`` and ``.lst`` (tabs), anything else (tabs
    if the line has one, otherwise the last space separates path and label). A first line that names its columns
    (``path,label`` or the like) may give them in any order, among others. Without one the columns are known by what
    they hold: a path ends like an image or is no number. So ``path label`` and ``label path`` are understood, and in a
    ``.lst`` im2rec's ``index label path`` (of several labels the first counts) and InsightFace's ``1 path label``,
    which may go on with a box and points. Identities that are whole numbers throughout are numbers, otherwise text.
    Empty lines are passed over, and in files that are not ``.csv`` also lines that begin with ``#``.

    Args:
        path: the list.
        root: folder that relative paths start from, and that all paths must lie in; by default the one the list is in.
        columns: names of the path and the label column, if the first line names them otherwise.
        allow: further folders that paths and links may lead into.

    Raises:
        FileNotFoundError: ``path`` is not a file.
        FormatError: a line has not the fields it needs (names file and byte), or there is no image.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        root: str | os.PathLike[str] | None = None,
        columns: tuple[str, str] | None = None,
        allow: Paths = (),
    ) -> None:
        self.path = Path(path)
        self.source = str(path)
        if not self.path.exists():
            raise nothing_at(path, "file")
        self.root = Path(root) if root is not None else self.path.parent
        self._inside = Enclosure(self.root, allow)
        paths: list[str] = []
        identities: list[str] = []
        offsets: list[int] = []
        with reading(path, "a list of images"):
            for offset, image, identity in _entries(self.path, columns):
                paths.append(image)
                identities.append(identity)
                offsets.append(offset)
        if not paths:
            raise FormatError("the list names no image", path=path, offset=0)
        self._paths = Texts(paths)
        self._offsets = np.array(offsets, dtype=np.int64)
        _check_known(identities, path, offsets)
        refuse_no_identity(identities, path)
        numbers = _as_numbers(identities)
        if isinstance(numbers, list):
            warn_of_numbers(set(numbers), self.source)
        self.labels, self.identities = contiguous_labels(numbers)
        warn_of_two_labels(self.source, paths, self.labels, self.identities)

    @override
    def read(self, index: int) -> bytes:
        index = self._check_index(index)
        try:
            return read_image_file(self._paths[index], inside=self._inside)
        except FormatError as error:
            raise FormatError(f"listed at byte {self._offsets[index]} of {self.path}: {error}") from error

    @override
    def locate(self, index: int) -> str:
        return f"{self._path(index)} (listed at byte {self._offsets[index]} of {self.path})"

    @override
    def name(self, index: int) -> str:
        stem = os.path.splitext(self._paths[index])[0].replace(os.sep, "/")
        parts = [part for part in stem.split("/") if part not in ("", ".", "..")]
        return "/".join(parts)

    def _path(self, index: int) -> str:
        return os.path.join(self.root, self._paths[index])


def _as_numbers(identities: list[str]) -> list[str] | np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Whole numbers as such, when all of them are and none would change its text (``007`` stays text)."""
    if all(_is_number(identity) for identity in identities):
        return np.array(
            [int(float(identity)) if "." in identity else int(identity) for identity in identities], dtype=np.int64
        )
    return identities


def _check_known(identities: list[str], path: str | os.PathLike[str], offsets: list[int]) -> None:
    """See that numbers are numbers: a ``nan`` among them is a gap in a table, and many gaps are not one person.

    Raises:
        FormatError: all are numbers, and one is not finite.
    """
    known = set(identities)
    words = {text for text in known if text.lower().lstrip("+-") in _NOT_FINITE}
    if words and all(map(_is_any_number, known)):
        gaps = [place for place, text in enumerate(identities) if text in words]
        raise FormatError(
            f"the label is {identities[gaps[0]]!r}, in {len(gaps)} of {len(identities)} lines, where the others are "
            "numbers. Leave out lines without an identity, or number them",
            path=path,
            offset=offsets[gaps[0]],
        )


def _is_number(text: str) -> bool:
    # im2rec writes whole labels as 3.000000.
    head, dot, tail = text.partition(".")
    if not (head.isascii() and head.isdigit()) or len(head) > 15 or (dot and tail.strip("0")):
        return False
    return head == "0" or head[0] != "0"


def _entries(path: Path, columns: tuple[str, str] | None) -> Iterator[tuple[int, str, str]]:
    suffix = path.suffix.lower()
    places: tuple[int, int] | None = None
    named = first = True
    no_image: list[str] = []  # fields of a first line that may be a header
    for offset, line in text_lines(path):
        if not line.strip() or (suffix != ".csv" and line.startswith("#")):
            continue
        fields = _split(line, suffix, path, offset)
        if first:
            first = False
            places = _header(fields, columns, path, offset)
            if places is not None:
                continue
            named = False
            places = _places(fields, suffix, path, offset)
            no_image = [] if _is_image(fields[places[0]]) else fields
        elif no_image:
            _check_first(no_image, fields, path, offset)
            no_image = []
        assert places is not None
        if not named and not (_length_fits(fields, suffix) and _is_image(fields[places[0]])):
            found = _places(fields, suffix, path, offset)
            if found != places:
                here, before = ({-1: "the last field", 0: "field 1", 1: "field 2"}[p[0]] for p in (found, places))
                raise FormatError(
                    f"{here} is the path in this line, but {before} in the lines before: {fields[:4]!r}",
                    path=path,
                    offset=offset,
                )
        image, identity = _pick(fields, places, path, offset)
        yield offset, image, identity


def _check_first(first: list[str], fields: list[str], path: Path, offset: int) -> None:
    """See that a first line without a path is not a header of unknown words, which would be a class and a picture.

    Raises:
        FormatError: the line behind it has a path.
    """
    if any(map(_is_image, fields)):
        raise FormatError(
            f"this line names an image, and the first line, {first!r}, does not. If that names the columns, call them "
            f"path and label, or give them: columns=({first[0]!r}, {first[1]!r}), data.source.options.columns="
            f"[{first[0]},{first[1]}]",
            path=path,
            offset=offset,
        )


def _split(line: str, suffix: str, path: Path, offset: int) -> list[str]:
    if suffix == ".csv":
        try:
            rows = list(csv.reader(io.StringIO(line), strict=True))
        except csv.Error as error:
            raise FormatError(f"not a line of CSV: {error}", path=path, offset=offset) from error
        fields = rows[0] if rows else []
    elif suffix in (".tsv", ".lst") or "\t" in line:
        fields = line.split("\t")
    else:
        fields = line.rsplit(None, 1)
        if _is_image(line) and not _is_image(fields[0]):
            fields = line.split(None, 1)  # the label first, and a path that may have spaces in it
    return [field.strip() for field in fields]


def _header(fields: list[str], columns: tuple[str, str] | None, path: Path, offset: int) -> tuple[int, int] | None:
    """Places of path and label if these fields name the columns, otherwise ``None``."""
    lower = [field.lower() for field in fields]
    if columns is not None:
        missing = [name for name in columns if name not in fields]
        if missing:
            raise FormatError(f"columns is {columns}, but the first line names {fields}", path=path, offset=offset)
        _refuse_twice(fields, columns, path, offset)
        return fields.index(columns[0]), fields.index(columns[1])
    image = next((lower.index(name) for name in PATH_NAMES if name in lower), None)
    label = next((lower.index(name) for name in LABEL_NAMES if name in lower), None)
    if image is None or label is None:
        return None
    _refuse_twice(lower, (lower[image], lower[label]), path, offset)
    return image, label


def _refuse_twice(fields: list[str], names: tuple[str, ...], path: Path, offset: int) -> None:
    for name in names:
        if fields.count(name) > 1:
            raise FormatError(f"the first line names the column {name!r} twice: {fields}", path=path, offset=offset)


def _length_fits(fields: list[str], suffix: str) -> bool:
    return len(fields) >= 3 if suffix == ".lst" else len(fields) == 2


def _places(fields: list[str], suffix: str, path: Path, offset: int) -> tuple[int, int]:
    """Places of path and label in a line without a header, known by what they hold."""
    candidates = [(-1, 1), (1, 2)] if suffix == ".lst" else [(0, 1), (1, 0)]
    if not _length_fits(fields, suffix):
        raise _other_length(fields, suffix, path, offset)
    if suffix not in (".lst", ".csv") and not any(map(_is_image, fields)) and any(map(_is_image, fields[0].split())):
        raise _other_length([*fields[0].split(), fields[1]], suffix, path, offset)  # a path, a label, and what else?
    for looks in (_is_image, lambda field: bool(field) and not _is_any_number(field)):
        images = {place for place in {image for image, _ in candidates} if looks(fields[place])}
        if len(images) == 1:
            return next(pair for pair in candidates if pair[0] in images)
    if suffix != ".lst":
        return candidates[0]  # both or neither may be a path: as it is written down
    (last, label), (second, third) = candidates
    raise FormatError(
        f"cannot tell which field is the path: {fields[last]!r} (then {fields[label]!r} is the label, as im2rec writes "
        f"them) or {fields[second]!r} (then {fields[third]!r} is, as InsightFace does). Name the columns in a first "
        "line, such as `index<tab>label<tab>path`",
        path=path,
        offset=offset,
    )


def _other_length(fields: list[str], suffix: str, path: Path, offset: int) -> FormatError:
    wanted = "`index<tab>label<tab>path` or `1<tab>path<tab>label`" if suffix == ".lst" else "`path` and `label`"
    way = "Name the columns in a first line, such as `path,label`"
    if len(fields) == 1:
        way = f"Fields are separated by {_SEPARATORS.get(suffix, 'tabs or a space')} in a {suffix or 'text'} file"
    elif suffix != ".csv":
        way = "Name the columns in a first line, such as `path<tab>label`, with tabs between fields"
    return FormatError(
        f"expected {wanted}, found {len(fields)} fields: {fields[:4]!r}. {way}", path=path, offset=offset
    )


def _is_image(field: str) -> bool:
    return os.path.splitext(field)[1].lower() in IMAGE_SUFFIXES


def _is_any_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _pick(fields: list[str], places: tuple[int, int], path: Path, offset: int) -> tuple[str, str]:
    if max(places) >= len(fields):
        raise FormatError(
            f"the line has {len(fields)} fields, but the columns need {max(places) + 1}", path=path, offset=offset
        )
    image, identity = fields[places[0]], fields[places[1]]
    if not image or not identity:
        raise FormatError(f"the {'path' if not image else 'label'} is empty", path=path, offset=offset)
    return image, identity
