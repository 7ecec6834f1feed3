"""What the handlers share: the recogniser behind its batcher, the gallery, and the way between pictures and answers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from lightning_pfc.deploy.pictures import prepare
from lightning_pfc.deploy.recogniser import Recogniser
from lightning_pfc.gallery import Gallery, NewPicture
from lightning_pfc.gallery.deciding import search_threshold
from lightning_pfc.gallery.previews import preview_of
from lightning_pfc.runs.thresholds import NotCalibratedError, Threshold
from lightning_pfc.service.batcher import Batcher, Pixels, Rows
from lightning_pfc.service.errors import RequestError
from lightning_pfc.service.limits import Limits
from lightning_pfc.service.pictures import check
from lightning_pfc.service.telemetry import Telemetry

Result = TypeVar("Result")


class ServiceState:
    """One recogniser, perhaps a gallery, and the threads that work with them.

    Args:
        recogniser: what embeds.
        gallery: of its vectors; None: there is none.
        limits: bounds.
        telemetry: counts and logs.
        decoders: threads that decode pictures.
        read_only: nothing in the gallery is changed.
    """

    def __init__(
        self,
        recogniser: Recogniser,
        gallery: Gallery | None,
        limits: Limits,
        telemetry: Telemetry,
        decoders: int = 2,
        *,
        read_only: bool = False,
    ) -> None:
        self.read_only = read_only
        self.recogniser, self._gallery, self.limits, self.telemetry = recogniser, gallery, limits, telemetry
        self.batcher = Batcher(recogniser.embed_pixels, waiting=limits.queue, observe=telemetry.batch)
        self._decoders = ThreadPoolExecutor(decoders, thread_name_prefix="decoding")
        self._keeper = ThreadPoolExecutor(4, thread_name_prefix="gallery")

    @property
    def gallery(self) -> Gallery:
        """The gallery.

        Raises:
            RequestError: 404 if the service has none.
        """
        if self._gallery is None:
            raise RequestError(404, "this service has no gallery: start it with `pfc-serve EXPORT --gallery GALLERY`.")
        return self._gallery

    @property
    def has_gallery(self) -> bool:
        """Whether there is one."""
        return self._gallery is not None

    async def embed(self, pictures: Sequence[bytes], where: str = "image") -> tuple[Rows, list[Pixels]]:
        """Embeddings (n, D) of encoded pictures, and the pixels that the network saw.

        Raises:
            RequestError: for too many, or one that is too large or no picture.
        """
        if len(pictures) > self.limits.pictures:
            raise RequestError(413, f"{len(pictures)} pictures, at most {self.limits.pictures} are taken in a request.")
        names = [where if len(pictures) == 1 else f"{where} {i}" for i in range(len(pictures))]
        loop = asyncio.get_running_loop()
        pixels = list(
            await asyncio.gather(
                *(
                    loop.run_in_executor(self._decoders, self._prepare, picture, name)
                    for picture, name in zip(pictures, names, strict=True)
                )
            )
        )
        rows = await self.batcher.embed(pixels)
        if not np.isfinite(rows).all():
            raise RequestError(
                422, f"{where}: the network gave numbers that are not finite for it; send another picture."
            )
        return rows, pixels

    def _prepare(self, picture: bytes, where: str) -> Pixels:
        data, cutter = check(picture, self.limits, where), self.recogniser.cutter
        if cutter is None:
            return self.recogniser.prepare(data)
        face = cutter.photo(data, where=where)[0]
        if face.others >= self.limits.faces:
            raise RequestError(
                422,
                f"{where} shows {face.others + 1} faces, at most {self.limits.faces} are taken: cut out the one that "
                "is meant, or start the service with --max-faces.",
            )
        return prepare(face.pixels, self.recogniser.description.preprocessing)

    async def keep(self, work: Callable[[], Result]) -> Result:
        """Do something with the gallery in a thread of its own."""
        return await asyncio.get_running_loop().run_in_executor(self._keeper, work)

    async def new_pictures(self, pictures: Sequence[bytes]) -> list[NewPicture]:
        """Pictures to be enrolled, with a small image to show of each."""
        rows, pixels = await self.embed(pictures)
        return [
            NewPicture(row, "service", preview_of(one), hashlib.sha256(data).hexdigest())
            for row, one, data in zip(rows, pixels, pictures, strict=True)
        ]

    def threshold(self, name: str | None, *, search: bool = False) -> Threshold | None:
        """The threshold of a name, or the first one; None where the model was never calibrated.

        Args:
            name: of the threshold.
            search: it is for a search, which takes those for identification too.

        Raises:
            RequestError: 422 if there is none of that name.
        """
        try:
            return search_threshold(self.recogniser, name) if search else self.recogniser.threshold(name)
        except NotCalibratedError as error:
            raise RequestError(422, str(error)) from error

    def close(self) -> None:
        """Finish what is under way, then let go."""
        self.batcher.close()
        self._decoders.shutdown()
        self._keeper.shutdown()
        if self._gallery is not None:
            self._gallery.close()
