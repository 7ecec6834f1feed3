"""What every protocol works with: a model, settings and ranks; how sets are opened and embedded, intervals made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightning_pfc.checked import checked
from lightning_pfc.data.images import ImageTable
from lightning_pfc.data.preprocessing import Flip, Preprocessing
from lightning_pfc.data.verification import VerificationSet
from lightning_pfc.evaluation.embedders import Embedder, embed_images, preprocessing_of
from lightning_pfc.evaluation.faces import EncodedFaces, FaceSet, of_identities, open_faces
from lightning_pfc.evaluation.peers import Peers
from lightning_pfc.evaluation.run_pictures import held_out
from lightning_pfc.evaluation.settings import EvaluationSettings
from lightning_pfc.runs.run_folder import Run


@checked
class EvaluationContext:
    """A model, what the protocols share, and the ranks that work together.

    Args:
        embedder: The model; None if all sets are embeddings made elsewhere.
        settings: What the protocols share.
        peers: The ranks; None takes the default process group if there is one.
    """

    def __init__(
        self, embedder: Embedder | None, settings: EvaluationSettings | None = None, peers: Peers | None = None
    ) -> None:
        self.embedder = embedder
        self.settings = settings or EvaluationSettings()
        self.peers = peers or Peers.current()

    def interval(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """An interval by one of the functions of ``evaluation.intervals``, or None when none are wanted."""
        if not self.settings.replicates:
            return None
        return function(*arguments, level=self.settings.level)

    def input_size(self, name: str) -> tuple[int, int, int]:
        """(C, H, W) that the model wants."""
        if self.embedder is None:
            raise ValueError(
                f"protocols.{name} holds images, but there is no model: choose embedder=checkpoint or onnx"
            )
        return self.embedder.input_size

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How pictures are made for the model: what it says, but for the user's words; None without one."""
        s = self.settings
        if self.embedder is None:
            return None
        return preprocessing_of(self.embedder).changed(
            fit=s.fit, resampling=s.resampling, background=s.background, flip=s.flip
        )

    @property
    def flip(self) -> Flip:
        """Whether the embeddings of mirror images are added."""
        known = self.preprocessing
        return known.flip if known else self.settings.flip or "none"

    def _wanted(self, name: str) -> Preprocessing:
        self.input_size(name)  # refuses where there is no model
        known = self.preprocessing
        assert known is not None
        return known

    def pictures(self, name: str, encoded: Any) -> EncodedFaces:
        """Encoded images of a protocol as the model wants them."""
        return EncodedFaces(encoded, self._wanted(name), max_pixels=self.settings.max_pixels)

    def held_out(self, name: str, path: str, set: str) -> VerificationSet:
        """A set of identities that a run held out, as the model wants its pictures, bounded as the run says."""
        return held_out(Run(path), set, self._wanted(name))

    def faces(self, path: str, identities: str | None = None) -> FaceSet:
        """Images, as the model wants them, or embeddings made elsewhere; perhaps of the identities of a list alone."""
        s = self.settings
        faces = open_faces(path, self.preprocessing, max_pixels=s.max_pixels, allow=s.allow)
        return faces if identities is None else of_identities(faces, identities)

    def embed(self, images: ImageTable) -> Tensor:
        """Embeddings of all pictures, (N, D), the same on every rank."""
        if self.embedder is None:
            raise ValueError("there is no model to embed images: choose embedder=checkpoint or onnx")
        s = self.settings
        return embed_images(
            self.embedder,
            images,
            flip=self.flip,
            batch_size=s.batch_size,
            num_workers=s.num_workers,
            peers=self.peers,
        )

    def _open(self, name: str, path: str, identities: str | None = None) -> tuple[FaceSet, Tensor]:
        faces = self.faces(path, identities)
        if faces.embeddings is not None:
            return faces, faces.embeddings
        if faces.images is None:
            raise ValueError(f"protocols.{name} is empty")
        return faces, self.embed(faces.images)
