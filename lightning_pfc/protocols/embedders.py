"""Models that turn pictures into embeddings: checkpoints of this project, ONNX files, models of timm."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_pfc.checkpoint import is_checkpoint_folder, load_folder
from lightning_pfc.data.formats.errors import missing_library
from lightning_pfc.data.images import ImageTable
from lightning_pfc.distributed.comm import Comm
from lightning_pfc.protocols.peers import Peers

Flip = Literal["none", "sum"]


class Embedder(Protocol):
    """Pictures in, embeddings out."""

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W) of the pictures."""

    def __call__(self, pictures: Tensor) -> Tensor:
        """(b, C, H, W) uint8 RGB -> (b, D) float32 on the CPU, not normalised."""


class TorchEmbedder:
    """A torch module as an embedder, in evaluation mode and without gradients.

    Args:
        module: Images (b, C, H, W) float -> embeddings (b, D).
        input_size: (C, H, W).
        mean: Subtracted from pixels in [0, 1], one number or one per channel.
        std: What they are divided by then.
        device: Where to compute; None is where the module lies.
    """

    def __init__(
        self,
        module: nn.Module,
        input_size: Sequence[int],
        *,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        device: torch.device | str | None = None,
    ) -> None:
        self.module = module if device is None else module.to(device)
        self.input_size = (int(input_size[0]), int(input_size[1]), int(input_size[2]))
        self.device = torch.device(device) if device is not None else next(module.parameters()).device
        self.mean = torch.as_tensor(mean, dtype=torch.float32).reshape(-1, 1, 1).to(self.device) * 255.0
        self.std = torch.as_tensor(std, dtype=torch.float32).reshape(-1, 1, 1).to(self.device) * 255.0

    def __call__(self, pictures: Tensor) -> Tensor:
        """(b, C, H, W) uint8 -> (b, D) float32 on the CPU."""
        training = [module for module in self.module.modules() if module.training]
        self.module.eval()
        try:
            with torch.inference_mode():
                images = (pictures.to(self.device).float() - self.mean) / self.std
                embeddings: Tensor = self.module(images)
                return embeddings.float().cpu()
        finally:
            for module in training:
                module.training = True


def checkpoint_embedder(path: str | os.PathLike[str], *, device: str = "cpu") -> TorchEmbedder:
    """Backbone and neck of a :class:`~lightning_pfc.module.PartialFCModule` checkpoint; the head never gets storage.

    Args:
        path: A Lightning checkpoint: a file, or the folder that several ranks write (only backbone and neck are read).
        device: Where to compute.

    Returns:
        The embedder.

    Raises:
        FileNotFoundError: When the checkpoint is not there.
        ValueError: When it is no checkpoint of such a module, or lacks weights of it.
        CheckpointError: When a file of the folder is missing or damaged (names it).
    """
    from lightning_pfc.module import PartialFCModule  # imports lightning

    content = _checkpoint(Path(path))
    if "state_dict" not in content or "backbone" not in content.get("hyper_parameters", {}):
        raise ValueError(
            f"{path} is no checkpoint of a PartialFCModule whose backbone has a name; export it to ONNX instead"
        )
    hyper_parameters = {**content["hyper_parameters"], "pretrained": False}
    module = PartialFCModule(**hyper_parameters)
    weights = {k: v for k, v in content["state_dict"].items() if k.startswith(("backbone.", "neck."))}
    missing = [
        k for k in module.load_state_dict(weights, strict=False).missing_keys if k.startswith(("backbone.", "neck."))
    ]
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} weights of the model, the first is {missing[0]}")
    network = nn.Sequential(module.backbone, module.neck)
    return TorchEmbedder(network, module.input_size, device=device)


class _Network:
    """Of a checkpoint folder, the weights of backbone and neck alone; memory is made as they are read."""

    def __call__(self, key: str, stored: Any) -> None:
        """Have memory made for whatever is read."""

    def wants(self, key: str) -> bool:
        """Whether a tensor is read."""
        return key.startswith(("state_dict/backbone.", "state_dict/neck."))


def _checkpoint(path: Path) -> dict[str, Any]:
    if is_checkpoint_folder(path):
        content: Any = load_folder(path, Comm.single(), _Network())[0]
    elif path.is_file():
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    else:
        what = "is a folder without a manifest.json" if path.is_dir() else "is not there"
        raise FileNotFoundError(f"no such checkpoint: {path} {what}")
    return content if isinstance(content, dict) else {}


def timm_embedder(
    name: str, *, device: str = "cpu", checkpoint_path: str | None = None, pretrained: bool = False
) -> TorchEmbedder:
    """A model of timm without its classifier, with the input size and normalisation that timm notes for it.

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

    if not pretrained and not checkpoint_path:
        raise ValueError(f"embedder timm ({name}) has no trained weights: give checkpoint_path, or pretrained=true")
    model = timm.create_model(name, pretrained=pretrained, num_classes=0, checkpoint_path=checkpoint_path or "")
    config = timm.data.resolve_data_config({}, model=model)
    return TorchEmbedder(model, config["input_size"], mean=config["mean"], std=config["std"], device=device)


class OnnxEmbedder:
    """An ONNX model through onnxruntime.

    Files that list their weights as graph inputs too (as OpenCV's do, and onnxruntime refuses) are mended on the way.

    Args:
        path: The model; its only input is (b, C, H, W) or (1, C, H, W) float32.
        mean: Subtracted from pixels in 0..255, one number or one per channel.
        std: What they are divided by then.
        channels: ``"rgb"`` or ``"bgr"``.
        providers: Of onnxruntime; None takes the CPU.
        threads: Of onnxruntime; 0 lets it choose.

    Raises:
        FileNotFoundError: When the model is not there.
        MissingLibraryError: When onnxruntime (or onnx, for a file to be mended) is not installed.
        ValueError: When the model has another kind of input.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        mean: float | Sequence[float] = 127.5,
        std: float | Sequence[float] = 127.5,
        channels: Literal["rgb", "bgr"] = "rgb",
        providers: Sequence[str] | None = None,
        threads: int = 0,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise missing_library("onnxruntime", "An ONNX model") from error
        if not Path(path).is_file():
            raise FileNotFoundError(f"no such model: {path}")
        if channels not in ("rgb", "bgr"):
            raise ValueError(f"channels={channels!r} is unknown; use 'rgb' or 'bgr'")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        model, packed = _mended(path)
        if packed:  # then onnxruntime unpacks the weights once, and not again for every picture
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        wanted = list(providers or ["CPUExecutionProvider"])
        self._session = onnxruntime.InferenceSession(model, options, providers=wanted)
        inputs = self._session.get_inputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or not all(isinstance(n, int) for n in shape[1:]):
            found = ", ".join(f"{value.name} {value.shape}" for value in inputs[:3])
            raise ValueError(
                f"{path} must have one input (b, C, H, W) of fixed size, found {len(inputs)}: {found} (if these are "
                "weights, install onnx and try again)"
            )
        self.input_size = (int(shape[1]), int(shape[2]), int(shape[3]))
        self._input, self._fixed_batch = inputs[0].name, shape[0] if isinstance(shape[0], int) else None
        self._mean = np.asarray(mean, dtype=np.float32).reshape(-1, 1, 1)
        self._std = np.asarray(std, dtype=np.float32).reshape(-1, 1, 1)
        self._swap = channels == "bgr"

    def __call__(self, pictures: Tensor) -> Tensor:
        """(b, C, H, W) uint8 RGB -> (b, D) float32."""
        images = pictures.numpy().astype(np.float32)
        images = (images[:, ::-1] if self._swap else images) - self._mean
        images = np.ascontiguousarray(images / self._std)
        size = self._fixed_batch or len(images)
        rows = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)]) if len(part) < size else part
            rows.append(np.asarray(self._session.run(None, {self._input: padded})[0], dtype=np.float32)[: len(part)])
        return torch.from_numpy(np.concatenate(rows)).flatten(1)


def _mended(path: str | os.PathLike[str]) -> tuple[bytes | str, bool]:
    """The path, or the model's bytes without the weights among its inputs; and whether only weights are quantised."""
    try:
        import onnx
    except ImportError:
        return os.fspath(path), False
    model = onnx.load(os.fspath(path))
    weights = {tensor.name for tensor in model.graph.initializer}
    kinds = {node.op_type for node in model.graph.node}
    packed = "DequantizeLinear" in kinds and "QuantizeLinear" not in kinds
    # Quantised models list the unpacked weights' old names too, which no node reads any more.
    read = {name for node in model.graph.node for name in node.input}
    kept = [value for value in model.graph.input if value.name not in weights and value.name in read]
    if len(kept) == len(model.graph.input):
        return os.fspath(path), packed
    del model.graph.input[:]
    model.graph.input.extend(kept)
    content: bytes = model.SerializeToString()
    return content, packed


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
