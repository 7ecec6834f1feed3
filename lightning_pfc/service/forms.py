"""Forms with files, as browsers and curl send them: pictures by their fields, and texts."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from typing_extensions import override

from lightning_pfc.service.errors import RequestError
from lightning_pfc.service.limits import Limits

_FIELDS = 20  # besides pictures


class Form(NamedTuple):
    """What a form holds: encoded pictures by the name of their field, in order, and texts, one of a name."""

    pictures: dict[str, list[bytes]]
    texts: dict[str, str]


async def read_form(request: Request, fields: tuple[str, ...], limits: Limits) -> Form:
    """The form that a request holds.

    Args:
        request: its body is in memory, whole.
        fields: those that are pictures.
        limits: how many, and how large.

    Raises:
        RequestError: 413 for too many pictures; 422 for what is no form, ends too early, has a text where a picture
            belongs or the other way round, or a text twice.
    """
    parser = _InMemory(
        request.headers,
        request.stream(),
        max_files=limits.pictures,
        max_fields=_FIELDS,
        max_part_size=limits.image,
    )
    parser.spool_max_size = limits.body + 1
    try:
        items = (await parser.parse()).multi_items()
        if not parser.ended:
            raise MultiPartException("it ends before its last boundary")
    except (MultiPartException, ValueError, KeyError) as error:
        text = str(error.message if isinstance(error, MultiPartException) else error).rstrip(".")
        if text.startswith("Too many files"):
            raise RequestError(
                413, f"more than {limits.pictures} pictures, and as many at most are taken in a request; send fewer."
            ) from None
        raise RequestError(422, f"the form cannot be read: {text}.") from None
    form = Form({}, {})
    for name, value in items:
        if isinstance(value, UploadFile):
            if name not in fields:
                raise RequestError(422, f"file {name[:80]!r} is none of {', '.join(fields)}.")
            form.pictures.setdefault(name, []).append(await value.read())
        elif name in fields:
            raise RequestError(422, f"{name} came as text; send a file, as `curl -F {name}=@FILE` does.")
        elif name in form.texts:
            raise RequestError(422, f"{name[:80]!r} is given twice; give it once.")
        else:
            form.texts[name] = value
    return form


class _InMemory(MultiPartParser):
    """Keeps pictures in memory, where the whole request is already: Starlette's own puts larger ones on the disk."""

    def __init__(self, *arguments: Any, **words: Any) -> None:
        super().__init__(*arguments, **words)
        self.ended = False

    @override
    def on_end(self) -> None:
        """The last boundary."""
        self.ended = True
