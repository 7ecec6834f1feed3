"""The gallery over HTTP: enrol, add pictures, list, rename, delete."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from lightning_pfc.gallery import Identity
from lightning_pfc.service import bodies
from lightning_pfc.service.errors import RequestError
from lightning_pfc.service.reading import Read, content_of, reads
from lightning_pfc.service.state import ServiceState

router = APIRouter()

_PAGE = 1000

IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", min_length=1, max_length=200, description="the same key twice does the work once"),
]


def service(request: Request) -> ServiceState:
    """What the handlers work with."""
    state: ServiceState = request.app.state.service
    return state


Service = Annotated[ServiceState, Depends(service)]


def changeable(state: Service) -> ServiceState:
    """Likewise, to change the gallery.

    Raises:
        RequestError: 403 where the service may only read it.
    """
    if state.read_only:
        raise RequestError(403, "this service only reads its gallery (--read-only); ask one that may change it.")
    return state


ChangeableService = Annotated[ServiceState, Depends(changeable)]


@router.get("/identities")
async def list_identities(
    state: Service, after: str = "", limit: Annotated[int, Query(ge=1, le=_PAGE)] = 100
) -> bodies.IdentitiesAnswer:
    """Identities by name, a page at a time."""
    store = state.gallery.store
    found = await state.keep(lambda: store.identities(after, limit))
    following = found[-1].name if len(found) == limit else None
    return bodies.IdentitiesAnswer(identities=[_answer(one) for one in found], next=following)


@router.post("/identities", status_code=201, openapi_extra=content_of(bodies.EnrolRequest))
async def enrol(
    state: ChangeableService,
    read: Annotated[Read[bodies.EnrolRequest], Depends(reads(bodies.EnrolRequest, "image", "images"))],
    idempotency_key: IdempotencyKey = None,
) -> bodies.IdentityAnswer:
    """Enrol a new identity; it is on the disk when this is answered."""
    gallery, body, encoded = state.gallery, read.body, read.every("image", "images")
    digest = _digest("enrol", body.name, json.dumps(body.metadata, sort_keys=True), encoded)
    if (earlier := await _answered(state, idempotency_key, digest)) is not None:
        return earlier
    pictures = await state.new_pictures(encoded)
    return await _once(state, idempotency_key, digest, lambda: gallery.enrol(body.name, pictures, body.metadata))


@router.post("/identities/{name:path}/pictures", status_code=201, openapi_extra=content_of(bodies.AddPicturesRequest))
async def add_pictures(
    name: str,
    state: ChangeableService,
    read: Annotated[Read[bodies.AddPicturesRequest], Depends(reads(bodies.AddPicturesRequest, "image", "images"))],
    idempotency_key: IdempotencyKey = None,
) -> bodies.IdentityAnswer:
    """Add pictures to an identity."""
    gallery, encoded = state.gallery, read.every("image", "images")
    digest = _digest("add", name, "", encoded)
    if (earlier := await _answered(state, idempotency_key, digest)) is not None:
        return earlier
    await state.keep(lambda: gallery.store.identity(name))  # an unknown one is refused before anything is embedded
    pictures = await state.new_pictures(encoded)
    return await _once(state, idempotency_key, digest, lambda: gallery.add_pictures(name, pictures))


@router.get("/identities/{name:path}")
async def get_identity(name: str, state: Service) -> bodies.IdentityAnswer:
    """One identity."""
    store = state.gallery.store
    return _answer(await state.keep(lambda: store.identity(name)))


@router.patch("/identities/{name:path}", openapi_extra=content_of(bodies.ChangeRequest))
async def change(
    name: str,
    state: ChangeableService,
    read: Annotated[Read[bodies.ChangeRequest], Depends(reads(bodies.ChangeRequest))],
) -> bodies.IdentityAnswer:
    """Rename an identity, or change what is remembered of it."""
    store, body = state.gallery.store, read.body

    def work() -> Identity:
        with store.transaction():
            found = store.set_metadata(name, body.metadata) if body.metadata is not None else store.identity(name)
            return store.rename(name, body.name) if body.name not in (None, name) else found

    return _answer(await state.keep(work))


@router.delete("/identities/{name:path}", status_code=204)
async def delete(name: str, state: ChangeableService) -> Response:
    """Forget an identity and all its pictures; its numbers are overwritten when this is answered."""
    gallery = state.gallery
    await state.keep(lambda: gallery.remove(name))
    return Response(status_code=204)


@router.delete("/pictures/{picture}", status_code=204)
async def delete_picture(picture: int, state: ChangeableService) -> Response:
    """Forget one picture."""
    gallery = state.gallery
    await state.keep(lambda: gallery.remove_picture(_number(picture)))
    return Response(status_code=204)


@router.get("/pictures/{picture}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
async def preview(picture: int, state: Service) -> Response:
    """A small image of a picture."""
    store = state.gallery.store
    found = await state.keep(lambda: store.preview(_number(picture)))
    if found is None:
        raise RequestError(404, f"there is no image of picture {picture}.")
    return Response(found, media_type="image/jpeg", headers={"Cache-Control": "no-store"})


def _number(picture: int) -> int:
    if not 0 < picture < 1 << 40:
        raise RequestError(404, "there is no such picture.")
    return picture


def _answer(identity: Identity) -> bodies.IdentityAnswer:
    return bodies.IdentityAnswer(name=identity.name, pictures=list(identity.pictures), metadata=identity.metadata)


def _digest(kind: str, name: str, more: str, pictures: Sequence[bytes]) -> str:
    parts = [kind, name, more, *(hashlib.sha256(picture).hexdigest() for picture in pictures)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


async def _answered(state: ServiceState, key: str | None, digest: str) -> bodies.IdentityAnswer | None:
    if key is None:
        return None
    store = state.gallery.store
    earlier = await state.keep(lambda: store.answer(key, digest))
    return None if earlier is None else bodies.IdentityAnswer.model_validate_json(earlier)


async def _once(
    state: ServiceState, key: str | None, digest: str, work: Callable[[], Identity]
) -> bodies.IdentityAnswer:
    """Do the work and remember its answer in one transaction; where another request was first, give that one's."""
    store = state.gallery.store

    def done() -> bodies.IdentityAnswer:
        if key is None:
            return _answer(work())
        with store.transaction():
            earlier = store.answer(key, digest)
            if earlier is not None:
                return bodies.IdentityAnswer.model_validate_json(earlier)
            answer = _answer(work())
            store.put_answer(key, digest, answer.model_dump_json())
            return answer

    return await state.keep(done)
