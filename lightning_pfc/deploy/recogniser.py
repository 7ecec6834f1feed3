"""A recogniser: pictures in, embeddings, comparisons and names out."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lightning_pfc.checked import WrongKindError, checked
from lightning_pfc.data.pictures.decoding import MAX_PIXELS
from lightning_pfc.deploy.answers import Comparison, Match
from lightning_pfc.deploy.centers import CenterGallery
from lightning_pfc.deploy.description import ModelDescription
from lightning_pfc.deploy.engines import Engine, Floats
from lightning_pfc.deploy.folder import open_folder
from lightning_pfc.deploy.open_export import open_cutter, open_network
from lightning_pfc.deploy.pictures import Picture, Pixels, cut_out, one_by_one, prepare
from lightning_pfc.deploy.vectors import as_rows, unit
from lightning_pfc.runs.hub import local_folder
from lightning_pfc.runs.thresholds import Kind, NotCalibratedError, Threshold, Thresholds

if TYPE_CHECKING:
    from lightning_pfc.faces import FaceCutter

BATCH_SIZE = 64


@checked
class Recogniser:
    """An exported model, ready to use. :meth:`load` makes one.

    Calls from several threads are safe. A model that computes the sum of a picture and its mirror image, or embeddings
    of length one, does so by option: both are off, unless the export itself was made so.

    Args:
        network: (b, C, H, W) float32 to (b, D) float32.
        description: of the model.
        folder: where it lies.
        flip: add the embedding of the mirror image.
        normalize: give embeddings of length one.
        cutter: pictures are photos: the face that it finds in each is cut out and aligned first.
        max_pixels: bound of what is decoded.

    Attributes:
        description: all that the export knows.
        thresholds: by name.
    """

    def __init__(
        self,
        network: Engine,
        description: ModelDescription,
        folder: str | os.PathLike[str] | None = None,
        *,
        flip: bool = False,
        normalize: bool = False,
        cutter: FaceCutter | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if flip and description.model.flip == "sum":
            raise ValueError("flip=True: the model adds mirror images itself (it was exported so); leave flip out")
        if max_pixels < 1:
            raise ValueError(f"max_pixels={max_pixels} must be at least 1")
        self.description = description
        self.network = network
        self.flip = flip
        self.normalize = normalize
        self.cutter = cutter
        self.max_pixels = max_pixels
        self.folder = None if folder is None else Path(folder)
        self._centers: CenterGallery | None = None

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        engine: str | None = None,
        *,
        flip: bool = False,
        normalize: bool = False,
        fit: str | None = None,
        threads: int = 0,
        photos: bool = False,
        detector: str | os.PathLike[str] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> Recogniser:
        """Open what ``pfc-export`` wrote.

        Args:
            folder: of the export.
            engine: ``"onnxruntime"``, ``"openvino"``, or ``"torch"`` (the weights in ``model.safetensors``); None takes
                the one that the export was made for.
            flip: add the embedding of the mirror image to that of each picture.
            normalize: give embeddings of length one.
            fit: what is done to pictures of another size, in place of what the export says: ``"exact"``, ``"stretch"``,
                ``"crop"``.
            threads: that one call may use; 0 leaves it to the engine.
            photos: pictures are photos: the largest face in each is found, cut out and aligned first. A photo without
                one is a NoFaceError.
            detector: an ONNX file that finds faces, YuNet or SCRFD; None takes that of the export.
            max_pixels: bound of what is decoded; a larger JPEG is decoded at a fraction of its size.

        Raises:
            ExportError: the folder is no export, or a file of it is missing or was changed.
            EngineError: the engine is not installed.
            ValueError: an argument has a value that does not exist.
        """
        if detector is not None and not photos:
            raise ValueError(f"detector={os.fspath(detector)!r} finds faces in photos; give photos=True")
        description = open_folder(folder)
        if fit is not None:
            description = description.changed(preprocessing=description.preprocessing.changed(fit=fit))
        network = open_network(Path(folder), description, engine, threads)
        cutter = open_cutter(Path(folder), description, detector, threads, max_pixels) if photos else None
        return cls(network, description, folder, flip=flip, normalize=normalize, cutter=cutter, max_pixels=max_pixels)

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], *, revision: str | None = None, **options: Any
    ) -> Recogniser:
        """As :meth:`load`, also for a repository ``"owner/name"`` of the Hugging Face hub, which is fetched."""
        return cls.load(local_folder(name, revision), **options)

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the network's input."""
        return self.description.preprocessing.image_shape

    @property
    def width(self) -> int:
        """D of an embedding."""
        return self.description.model.width

    @property
    def thresholds(self) -> Thresholds:
        """By name; the first is the one that is meant where none is named."""
        return self.description.thresholds

    @property
    def model_id(self) -> str:
        """Changes with anything that changes embeddings: for whoever keeps some."""
        about = self.description
        parts = [
            about.weights or about.sha256.get(about.model.file, ""),
            about.model.precision,
            self._flips(),
            json.dumps(about.preprocessing.to_config(), sort_keys=True),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def threshold(self, name: str | None = None, kind: Kind = "verification") -> Threshold | None:
        """The threshold of a name; without one the first of its kind, or None where the model was never calibrated.

        Raises:
            NotCalibratedError: there is none of that name, or it was chosen with flips and this recogniser has none (or
                the other way round); says what to do.
        """
        flip = self._flips()
        if name is None:
            return next((t for t in self.thresholds.values() if (t.kind, t.flip) == (kind, flip)), None)
        found = self.thresholds.get_named(name)
        if found.flip != flip:
            raise NotCalibratedError(
                f"threshold {name!r} was chosen with flip={found.flip}, and this recogniser has flip={flip}: load it "
                f"with flip={found.flip == 'sum'}, or calibrate with calibrate.flip={flip}"
            )
        if found.kind != kind:
            raise NotCalibratedError(
                f"threshold {name!r} is for {found.kind}, and is asked for {kind}: a best match in a gallery and a "
                "single pair are wrong at different rates"
            )
        return found

    def _flips(self) -> str:
        return "sum" if self.flip or self.description.model.flip == "sum" else "none"

    # --- pictures to embeddings ---------------------------------------------------------------------------------------

    def prepare(self, picture: Picture) -> Pixels:
        """A picture as (H, W, C) uint8, as training would have it; errors as :func:`~.pictures.prepare`.

        With a ``cutter``, the face in it; NoFaceError where there is none.
        """
        if self.cutter is not None:
            picture = cut_out(picture, self.cutter)
        return prepare(picture, self.description.preprocessing, max_pixels=self.max_pixels)

    def embed(self, pictures: Picture | Iterable[Picture], *, batch_size: int = BATCH_SIZE) -> Floats:
        """Embeddings of pictures.

        Args:
            pictures: one or several, a generator too: paths, encoded bytes, PIL images, uint8 arrays (H, W, C), of any
                sizes.
            batch_size: how many the network sees at once.

        Returns:
            (N, D) float32, one row for each picture, in order; as the network gives them, unless ``normalize`` is set.

        Raises:
            BrokenImageError: a picture is damaged; names the file, or the number of the picture.
            ValueError, TypeError: something is no picture.
        """
        rows = list(self.embed_batches(pictures, batch_size=batch_size))
        return np.concatenate(rows) if rows else np.zeros((0, self.width), np.float32)

    def embed_batches(self, pictures: Picture | Iterable[Picture], *, batch_size: int = BATCH_SIZE) -> Iterator[Floats]:
        """As :meth:`embed`, a batch at a time: for more pictures than memory holds."""
        _check_count("batch_size", batch_size)
        batch: list[Pixels] = []
        for picture in one_by_one(pictures):
            batch.append(self.prepare(picture))
            if len(batch) == batch_size:
                yield self.embed_pixels(np.stack(batch))
                batch = []
        if batch:
            yield self.embed_pixels(np.stack(batch))

    def embed_pixels(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """(b, H, W, C) uint8, each as :meth:`prepare` gives it, to (b, D) float32."""
        images = self.description.preprocessing.array(pixels)
        rows = self.network(images)
        if self.flip:
            mirrored = self.network(np.ascontiguousarray(images[..., ::-1]))
            rows = (rows.astype(np.float64) + mirrored).astype(np.float32)
        return unit(rows) if self.normalize else rows

    # --- decisions ----------------------------------------------------------------------------------------------------

    def compare(self, a: Picture | Floats, b: Picture | Floats, *, threshold: str | None = None) -> Comparison:
        """Whether two pictures show one identity.

        Args:
            a: a picture, or an embedding (D,) float.
            b: likewise.
            threshold: by name; None takes the model's first.

        Raises:
            NotCalibratedError: there is no threshold of that name.
        """
        wanted = self.threshold(threshold, "verification")
        first, second = unit(self._rows([a, b])).astype(np.float64)
        score = float(first @ second)
        return Comparison(
            score, None if wanted is None else wanted.accepts(score), None if wanted is None else wanted.rate
        )

    def search(self, picture: Picture | Floats, k: int = 5, *, threshold: str | None = None) -> list[Match]:
        """The classes whose centers are nearest to a picture; needs an export with ``--centers``.

        Args:
            picture: a picture, or an embedding (D,) float.
            k: how many at most.
            threshold: by name; None takes the first for identification, if there is one.

        Returns:
            The best first.

        Raises:
            ExportError: the export holds no centers.
            NotCalibratedError: there is no threshold of that name.
        """
        _check_count("k", k)
        wanted = self.threshold(threshold, "identification")
        names, scores = self.centers.nearest(self._rows([picture])[0], k)
        return [
            Match(name, score, None if wanted is None else wanted.accepts(score))
            for name, score in zip(names, scores, strict=True)
        ]

    @property
    def centers(self) -> CenterGallery:
        """The exported class centers.

        Raises:
            ExportError: the export holds none.
        """
        if self._centers is None:
            self._centers = CenterGallery.load(self.folder, self.description)
        return self._centers

    def _rows(self, things: list[Any]) -> Floats:
        """Embeddings (N, D) of pictures or of what already are embeddings."""
        return as_rows(things, self.width, self.embed)


def _check_count(name: str, value: int) -> None:
    """Refuse what counts nothing: of 2.5 pictures to a batch none would ever be full."""
    if not hasattr(value, "__index__") or isinstance(value, bool):
        raise WrongKindError(f"{name}={value!r} must be a whole number")
    if value < 1:
        raise ValueError(f"{name}={value} must be at least 1")
