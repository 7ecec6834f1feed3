"""Requests as objects: JSON or a form with files, checked in one way."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from fastapi import Request as HttpRequest
from pydantic import BaseModel, ValidationError

from lightning_pfc.service.errors import RequestError
from lightning_pfc.service.forms import read_form
from lightning_pfc.service.limits import Limits
from lightning_pfc.service.pictures import from_base64

Body = TypeVar("Body", bound=BaseModel)


class Read(Generic[Body]):
    """A request that was understood.

    Attributes:
        body: its values; in a form, pictures stand there as their numbers.
        pictures: the encoded pictures by the name of their field, in order.
    """

    def __init__(self, body: Body, pictures: dict[str, list[bytes]]) -> None:
        self.body, self.pictures = body, pictures

    def every(self, *fields: str) -> list[bytes]:
        """Pictures of some fields, in order."""
        return [picture for field in fields for picture in self.pictures.get(field, [])]


def reads(model: type[Body], *fields: str) -> Callable[[HttpRequest], Awaitable[Read[Body]]]:
    """A dependency that reads a request of a model, whose ``fields`` are pictures."""

    async def read(request: HttpRequest) -> Read[Body]:
        limits: Limits = request.app.state.service.limits
        coding = request.headers.get("content-encoding", "").strip().lower()
        if coding not in ("", "identity"):
            raise RequestError(415, f"content-encoding {coding[:80]!r} is not taken; send the request as it is.")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            return await _form(request, model, fields, limits)
        if kind not in ("application/json", ""):
            raise RequestError(
                415, f"content-type {kind[:80]!r} is not taken; send application/json or multipart/form-data."
            )
        body = (
            _validated(lambda: model.model_validate_json(content), model) if (content := await request.body()) else None
        )
        if body is None:
            raise RequestError(422, "the request is empty; send a JSON object.")
        return Read(body, {name: _decoded(getattr(body, name, None), limits, name) for name in fields})

    return read


def content_of(model: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI is told of such a request."""
    reference = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
    return {"requestBody": {"required": True, "content": {"application/json": reference}}}


def _validated(make: Callable[[], Body], model: type[Body]) -> Body:
    try:
        return make()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RequestError(422, f"{where or model.__name__}: {first['msg']}.") from None
    except (RecursionError, UnicodeDecodeError) as error:
        raise RequestError(422, f"the request cannot be read: {type(error).__name__}.") from None


def _decoded(value: str | list[str] | None, limits: Limits, where: str) -> list[bytes]:
    texts = [value] if isinstance(value, str) else list(value or [])
    if len(texts) > limits.pictures:
        raise RequestError(413, f"{len(texts)} pictures, at most {limits.pictures} are taken in a request.")
    return [from_base64(text, limits, where if len(texts) == 1 else f"{where} {i}") for i, text in enumerate(texts)]


async def _form(request: HttpRequest, model: type[Body], fields: tuple[str, ...], limits: Limits) -> Read[Body]:
    form = await read_form(request, fields, limits)
    values = {name: _plain(model, name, value) for name, value in form.texts.items()}
    pictures = form.pictures
    if len(pictures.get("image", ())) > 1 and "images" in fields:  # several of one name are several pictures
        pictures["images"] = [*pictures.pop("image"), *pictures.get("images", ())]
    for name, found in pictures.items():
        numbers = [str(i) for i in range(len(found))]
        if name != "images" and len(found) > 1:
            raise RequestError(422, f"{name} is given {len(found)} times; it is one picture.")
        values[name] = numbers if name == "images" else numbers[0]
    return Read(_validated(lambda: model.model_validate(values), model), pictures)


def _plain(model: type[BaseModel], name: str, value: str) -> Any:
    """Forms have text only: what is no text in the model is JSON there."""
    field = model.model_fields.get(name)
    if field is None or field.annotation in (str, str | None):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise RequestError(422, f"{name[:80]} is no JSON: {value[:80]!r}.") from None
