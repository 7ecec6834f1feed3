"""What requests hold and what they are answered; OpenAPI's description is made from these."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
_IMAGE = Field(description="a JPEG, PNG or WebP file in base64", examples=[_PIXEL])
_THRESHOLD = Field(default=None, description="name of a threshold of the export; left out: its first", max_length=200)


class Request(BaseModel):
    """Any request: unknown words are an error."""

    model_config = ConfigDict(extra="forbid")


class Pictures(Request):
    """One picture, or several."""

    image: str | None = Field(default=None, description="a JPEG, PNG or WebP file in base64", examples=[_PIXEL])
    images: list[str] | None = Field(default=None, description="several of them", min_length=1)

    @model_validator(mode="after")
    def _one_of_both(self) -> Pictures:
        if (self.image is None) == (self.images is None):
            raise ValueError("give either image or images")
        return self

    @property
    def every(self) -> list[str]:
        """All pictures in base64."""
        return [self.image] if self.image is not None else list(self.images or [])


class EmbedRequest(Pictures):
    """Pictures to embed."""


class CompareRequest(Request):
    """Two pictures to compare."""

    a: str = _IMAGE
    b: str = _IMAGE
    threshold: str | None = _THRESHOLD


class SearchRequest(Request):
    """A picture whose identity is looked for."""

    image: str = _IMAGE
    k: int = Field(default=5, ge=1, description="how many identities to answer")
    threshold: str | None = _THRESHOLD


class EnrolRequest(Pictures):
    """A new identity with its pictures."""

    name: str = Field(min_length=1, max_length=500, description="unique in the gallery", examples=["anna"])
    metadata: dict[str, Any] = Field(default_factory=dict, description="what you want to remember of it")


class AddPicturesRequest(Pictures):
    """More pictures of an identity."""


class ChangeRequest(Request):
    """What is to be changed of an identity."""

    name: str | None = Field(default=None, min_length=1, max_length=500, description="its new name")
    metadata: dict[str, Any] | None = Field(default=None, description="in place of what there was")

    @model_validator(mode="after")
    def _something(self) -> ChangeRequest:
        if self.name is None and self.metadata is None:
            raise ValueError("give name, metadata or both")
        return self


class Answer(BaseModel):
    """Any answer."""


class ErrorAnswer(Answer):
    """Why a request was refused."""

    detail: str


class EmbeddingAnswer(Answer):
    """The embedding of one picture, D numbers."""

    embedding: list[float]


class EmbeddingsAnswer(Answer):
    """The embeddings of several pictures, in order."""

    embeddings: list[list[float]]


class CompareAnswer(Answer):
    """How alike two pictures are.

    ``same`` and ``far``, the false accept rate it stands for, and its ``interval`` are null where the export was never
    calibrated.
    """

    score: float
    same: bool | None
    far: float | None
    interval: tuple[float, float] | None = None
    threshold: str | None = None


class MatchAnswer(Answer):
    """An identity, how alike it is, whether it is the same (null: never calibrated), and its best picture."""

    identity: str
    score: float
    same: bool | None
    picture: int


class SearchAnswer(Answer):
    """The nearest identities, best first."""

    matches: list[MatchAnswer]
    threshold: str | None = None
    rate: float | None = None


class IdentityAnswer(Answer):
    """An identity and the numbers of its pictures."""

    name: str
    pictures: list[int]
    metadata: dict[str, Any]


class IdentitiesAnswer(Answer):
    """A page of identities by name, and what to give as ``after`` for the next one (null: that was the last)."""

    identities: list[IdentityAnswer]
    next: str | None
