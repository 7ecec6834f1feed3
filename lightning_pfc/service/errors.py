"""What a request is answered when it cannot be served: a status, a sentence, and when to come again."""

from __future__ import annotations

from lightning_pfc.data.errors import BrokenImageError, FormatError
from lightning_pfc.deploy.errors import ExportError, NoFaceError
from lightning_pfc.gallery.errors import (
    GalleryBusyError,
    GalleryError,
    GalleryFullError,
    IdentityExistsError,
    NotAGalleryError,
    OtherModelError,
    UnknownIdentityError,
)
from lightning_pfc.service.batcher import QueueFullError


class RequestError(Exception):
    """A request that is refused.

    Args:
        status: of HTTP.
        detail: what was wrong, and the way out.
        retry_after: seconds, where it may succeed later.
    """

    def __init__(self, status: int, detail: str, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.retry_after = status, detail, retry_after


_STATUS: tuple[tuple[type[Exception], int, int | None], ...] = (
    (QueueFullError, 503, 1),
    (GalleryBusyError, 503, 5),
    (GalleryFullError, 507, None),
    (NotAGalleryError, 503, None),  # it was one at the start: no request can mend that
    (OtherModelError, 503, None),
    (IdentityExistsError, 409, None),
    (UnknownIdentityError, 404, None),
    (GalleryError, 422, None),
    (NoFaceError, 422, None),
    (BrokenImageError, 422, None),
    (ExportError, 422, None),
    (FormatError, 422, None),
)


def as_request_error(error: Exception) -> RequestError | None:
    """How an error of the parts is answered; None for one that nobody foresaw."""
    if isinstance(error, RequestError):
        return error
    for kind, status, retry_after in _STATUS:
        if isinstance(error, kind):
            return RequestError(status, str(error), retry_after)
    return RequestError(422, str(error)) if isinstance(error, ValueError) else None
