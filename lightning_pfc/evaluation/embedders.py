"""Models that turn pictures into embeddings: checkpoints of this project, models of timm, ONNX files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_pfc.checked import checked
from lightning_pfc.checkpoint import CheckpointError
from lightning_pfc.checkpoint.network import network_checkpoint
from lightning_pfc.data.images import ImageTable
from lightning_pfc.data.preprocessing import Flip, Preprocessing, Resampling
from lightning_pfc.evaluation.onnx_embedder import OnnxEmbedder
from lightning_pfc.evaluation.peers import Peers
from lightning_pfc.models.reviewed import built_from_a_file, check_sizes, module_arguments

if TYPE_CHECKING:
    from lightning_pfc.module import PartialFCModule

__all__ = [
    "Embedder",
    "Flip",
    "OnnxEmbedder",
    "TorchEmbedder",
    "checkpoint_embedder",
    "embed_images",
    "preprocessing_of",
    "timm_embedder",
]

_log = logging.getLogger(__name__)


class Embedder(Protocol):
    """Pictures in, embeddings out.

    An attribute ``preprocessing`` says how its pictures are made, see :func:`preprocessing_of`.
    """

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W) of the pictures."""

    def __call__(self, pictures: Tensor) -> Tensor:
        """(b, C, H, W) uint8 RGB -> (b, D) float32 on the CPU, not normalised."""


def preprocessing_of(embedder: Embedder) -> Preprocessing:
    """How the pictures of a model are made: what it says; otherwise the middle is cut out, and flips are summed.

    InsightFace resizes the shorter side in the same way, and aligned images have the right size to begin with.
    """
    known = getattr(embedder, "preprocessing", None)
    return known if isinstance(known, Preprocessing) else _unsaid(embedder.input_size)


def _unsaid(size: Sequence[int], **more: Any) -> Preprocessing:
    return Preprocessing(size=(int(size[1]), int(size[2])), channels=int(size[0]), fit="crop", flip="sum", **more)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """In the block ``module`` is in evaluation mode; afterwards each of its parts is in the mode that it had."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@checked
class TorchEmbedder:
    """A torch module as an embedder, in evaluation mode and without gradients.

    Args:
        module: Images (b, C, H, W) float -> embeddings (b, D).
        input_size: (C, H, W).
        mean: Subtracted from pixels in [0, 1], one number or one per channel.
        std: What they are divided by then.
        preprocessing: How its pictures are made, in place of the last three.
        device: Where to compute; None is where the module lies.
    """

    def __init__(
        self,
        module: nn.Module,
        input_size: Sequence[int],
        *,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        preprocessing: Preprocessing | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.module = module if device is None else module.to(device)
        self.device = torch.device(device) if device is not None else next(module.parameters()).device
        if preprocessing is None:
            preprocessing = _unsaid(input_size, mean=_times_255(mean), std=_times_255(std))
        self.preprocessing = preprocessing
        self.input_size = preprocessing.image_shape

    def __call__(self, pictures: Tensor) -> Tensor:
        """(b, C, H, W) uint8 -> (b, D) float32 on the CPU."""
        with evaluating(self.module), torch.inference_mode():
            images = self.preprocessing.tensor(pictures.to(self.device))
            embeddings: Tensor = self.module(images)
            return embeddings.float().cpu()


def _times_255(numbers: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(255.0 * float(n) for n in ([numbers] if isinstance(numbers, int | float) else numbers))


def checkpoint_embedder(
    path: str | os.PathLike[str],
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    channels: Literal["rgb", "bgr"] | None = None,
    device: str = "cpu",
    backbone: str | None = None,
    backbone_options: Mapping[str, Any] | None = None,
) -> TorchEmbedder:
    """Backbone and neck of a :class:`~lightning_pfc.module.PartialFCModule` checkpoint; the head never gets storage.

    Pictures are made as they were in training, which the checkpoint tells; one of before it did is judged on the
    middle of pictures, with flips, and this is said.

    Args:
        path: A Lightning checkpoint: a file, or the folder that several ranks write (only backbone and neck are read).
        mean: Of pixels in 0..255, in place of the checkpoint's; one number or one per channel.
        std: Likewise.
        channels: Their order, in place of the checkpoint's.
        device: Where to compute.
        backbone: Its name, in place of the checkpoint's; here it may be one that timm fetches.
        backbone_options: Likewise.

    Returns:
        The embedder.

    Raises:
        FileNotFoundError: When the checkpoint is not there.
        ValueError: When it is no checkpoint of such a module, or lacks weights of it.
        CheckpointError: When a file of it is missing or damaged (names it), or sets what a file may not.
    """
    content = network_checkpoint(Path(path))
    stored = content.get("hyper_parameters", {})
    said = {"backbone": backbone, "backbone_options": backbone_options}
    said = {key: value for key, value in said.items() if value is not None}
    if not isinstance(stored, Mapping) or "backbone" not in {**stored, **said}:
        raise ValueError(
            f"{path} is no checkpoint of a PartialFCModule whose backbone has a name; export it to ONNX instead"
        )
    module = _network_module(path, stored, content["state_dict"], said)
    weights = {k: v for k, v in content["state_dict"].items() if k.startswith(("backbone.", "neck."))}
    missing = [
        k for k in module.load_state_dict(weights, strict=False).missing_keys if k.startswith(("backbone.", "neck."))
    ]
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} weights of the model, the first is {missing[0]}")
    network = nn.Sequential(module.backbone, module.neck)
    record = module.preprocessing
    if record is None:
        record = _unsaid(module.input_size)
        _log.warning(
            "%s does not say how its pictures were made. Taken is: %s. Say otherwise by settings.fit, "
            "settings.resampling and settings.flip.",
            path,
            ", ".join(f"{key}={value}" for key, value in record.to_config().items()),
        )
    record = record.changed(size=module.input_size[1:], channels=module.input_size[0])
    record = record.changed(mean=mean, std=std, color=channels)
    return TorchEmbedder(network, module.input_size, preprocessing=record, device=device)


def _network_module(
    path: str | os.PathLike[str], stored: Any, weights: Mapping[str, Any], said: Mapping[str, Any]
) -> PartialFCModule:
    """A module as a checkpoint asks for it, and as the user says."""
    from lightning_pfc.module import PartialFCModule  # imports lightning

    try:
        values = module_arguments(stored, said)
        check_sizes({**values, "backbone": None} if "backbone" in said else values, weights)
        with built_from_a_file(said):
            return PartialFCModule(**values)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is not opened: {error}.") from error


def timm_embedder(
    name: str, *, device: str = "cpu", checkpoint_path: str | None = None, pretrained: bool = False
) -> TorchEmbedder:
    """A model of timm without its classifier, with the input size, resampling and normalisation that timm notes for it.

    Args:
        name: timm's name of the model.
        device: Where to compute.
        checkpoint_path: Weights in timm's format.
        pretrained: Take timm's published weights (needs the network).

    Returns:
        The embedder.

    Raises:
        ValueError: Without any trained weights.
    """
    import timm

    import lightning_pfc.models  # noqa: F401  (registers the backbones of this package)

    if not pretrained and not checkpoint_path:
        raise ValueError(f"embedder timm ({name}) has no trained weights: give checkpoint_path, or pretrained=true")
    model = timm.create_model(name, pretrained=pretrained, num_classes=0, checkpoint_path=checkpoint_path or "")
    config = timm.data.resolve_data_config({}, model=model)
    resampling = config["interpolation"]
    record = _unsaid(config["input_size"], mean=_times_255(config["mean"]), std=_times_255(config["std"]))
    record = record.changed(resampling=resampling if resampling in get_args(Resampling) else None)
    return TorchEmbedder(model, config["input_size"], preprocessing=record, device=device)


class _Batches(Dataset[Tensor]):
    def __init__(self, images: ImageTable, positions: range, batch_size: int) -> None:
        self.images, self.positions, self.batch_size = images, positions, batch_size

    def __len__(self) -> int:
        return -(-len(self.positions) // self.batch_size)

    def __getitem__(self, number: int) -> Tensor:
        part = self.positions[number * self.batch_size : (number + 1) * self.batch_size]
        return self.images.fetch(np.arange(part.start, part.stop, dtype=np.int64))


def embed_images(
    embedder: Embedder,
    images: ImageTable,
    *,
    flip: Flip = "sum",
    batch_size: int = 64,
    num_workers: int = 0,
    peers: Peers | None = None,
) -> Tensor:
    """Embed all pictures, each rank its part.

    With ``flip="sum"`` the embeddings of a picture and of its mirror image are added as they are, in float64, as the
    InsightFace protocol does. Collectives: one gather.

    Args:
        embedder: The model.
        images: The pictures.
        flip: ``"sum"`` or ``"none"``.
        batch_size: Pictures at once.
        num_workers: Processes that decode; 0 decodes in this one.
        peers: The ranks that share the work; None takes the default process group if there is one.

    Returns:
        Embeddings, (N, D): float64 with flips, float32 without; the same on every rank.

    Raises:
        ValueError: On an unknown ``flip``, or a result that is not (b, D).
    """
    if flip not in ("none", "sum"):
        raise ValueError(f"flip={flip!r} is unknown; use 'sum' (picture and mirror image) or 'none'")
    peers = peers or Peers.current()
    loader: Any = DataLoader(
        _Batches(images, peers.share(len(images)), batch_size), batch_size=None, num_workers=num_workers
    )
    rows: list[Tensor] = []
    for pictures in loader:
        embeddings = embedder(pictures)
        if embeddings.ndim != 2 or len(embeddings) != len(pictures):
            raise ValueError(f"the embedder turned {tuple(pictures.shape)} into {tuple(embeddings.shape)}, not (b, D)")
        if flip == "sum":
            embeddings = embeddings.double() + embedder(pictures.flip(-1)).double()
        rows.append(embeddings)
    width = rows[0].shape[1] if rows else 0
    width = int(peers.cat(torch.tensor([width])).max())
    dtype = torch.float64 if flip == "sum" else torch.float32
    own = torch.cat(rows) if rows else torch.zeros(0, width, dtype=dtype)
    return peers.cat(own)
