"""The network that a run leaves: backbone and neck, without the head; also in the layout of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_pfc.checked import checked
from lightning_pfc.checkpoint.network import network_checkpoint
from lightning_pfc.models.backbone import as_input_size, create_backbone, native_input_size, output_width
from lightning_pfc.models.neck import create_neck
from lightning_pfc.models.reviewed import check_backbone, check_backbone_options, check_sizes, module_arguments
from lightning_pfc.runs.errors import ExportError
from lightning_pfc.runs.hub import local_folder
from lightning_pfc.runs.plain import Reader, read_json
from lightning_pfc.storage.whole_files import write_json, write_whole

CONFIG, WEIGHTS = "config.json", "model.safetensors"
LIBRARY = "lightning-pfc"


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What an :class:`EmbeddingModel` is made of: the arguments of the same names of ``PartialFCModule``."""

    backbone: str
    input_size: tuple[int, int, int]
    embedding_dim: int
    neck: str = "bn"
    dropout: float = 0.0
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    channels_last: bool = False

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> NetworkConfig:
        """From the ``config.json`` of an export.

        Raises:
            ExportError: it is not there, or holds something that a file must not decide.
        """
        reader = Reader(read_json(path), path)
        if reader.content.get("library_name") != LIBRARY:
            raise ExportError(f"is of {reader.content.get('library_name')!r}, not of {LIBRARY}", path)
        size = reader.numbers("input_size", 3)
        options = reader.at("backbone_options").content if "backbone_options" in reader else {}
        check_options(reader.text("backbone"), options, path)
        return cls(
            backbone=reader.text("backbone"),
            input_size=(int(size[0]), int(size[1]), int(size[2])),
            embedding_dim=reader.integer("embedding_dim", 1, 1 << 20),
            neck=reader.text("neck"),
            dropout=reader.number("dropout", 0.0, 1.0, 0.0),
            backbone_options=dict(options),
            channels_last=reader.boolean("channels_last", False),
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """As ``config.json``."""
        write_json(path, {"library_name": LIBRARY, **asdict(self)})


def check_options(backbone: str, options: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """See that a file asks for an installed network, and sets only what shapes it.

    Raises:
        ExportError: it does not; names it.
    """
    try:
        check_backbone(backbone)
        check_backbone_options(options)
    except ValueError as error:
        raise ExportError(str(error).split(". Say it")[0].split("; nothing is")[0], path) from error


def fingerprint_of(weights: Mapping[str, Tensor]) -> str:
    """The same for the same names and numbers, wherever they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@checked
class EmbeddingModel(nn.Module):
    """Images (b, C, H, W) float32 -> embeddings (b, D), as the ``forward`` of the module that was trained.

    Args:
        config: what it is made of; weights are random until some are loaded.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = create_backbone(
            config.backbone, input_size=config.input_size, pretrained=False, options=config.backbone_options
        )
        width = output_width(self.backbone, config.input_size)
        self.neck = create_neck(config.neck, width, config.embedding_dim, dropout=config.dropout)

    def forward(self, images: Tensor) -> Tensor:
        """(b, C, H, W) -> (b, D)."""
        embeddings: Tensor = self.neck(self.backbone(images))
        return embeddings

    def fingerprint(self) -> str:
        """Of all weights: the same for the same numbers, wherever they came from."""
        return fingerprint_of(self.state_dict())

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``model.safetensors`` and ``config.json`` into a folder that is there. Raises OSError."""
        from safetensors.torch import save  # its save_file has errors of its own, and lets only the owner read

        weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.state_dict().items()}
        with write_whole(Path(folder) / WEIGHTS) as file:
            file.write(save(weights, {"format": "pt"}))
        self.config.write(Path(folder) / CONFIG)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], *, revision: str | None = None) -> EmbeddingModel:
        """The model in a folder that ``pfc-export`` wrote, or of a repository of the hub.

        Args:
            name: the folder, or ``"owner/name"`` (fetched by huggingface_hub).
            revision: of the repository.

        Returns:
            The model in evaluation mode.

        Raises:
            ExportError: a file is missing, or holds other weights than the model has.
        """
        folder = local_folder(name, revision)
        model = cls(NetworkConfig.read(folder / CONFIG))
        model.load_weights(folder / WEIGHTS)
        return model.eval()

    def load_weights(self, path: str | os.PathLike[str]) -> None:
        """Take all weights from a safetensors file.

        Raises:
            ExportError: it is not there or damaged, or its names or shapes are others.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            weights = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ExportError(f"cannot be read: {error}", path) from error
        own = self.state_dict()
        wrong = [n for n in {**own, **weights} if n not in own or n not in weights or own[n].shape != weights[n].shape]
        if wrong:
            raise ExportError(f"does not hold the weights of {self.config.backbone}; the first is {wrong[0]}", path)
        self.load_state_dict(weights)


def load_network(checkpoint: str | os.PathLike[str]) -> tuple[EmbeddingModel, dict[str, Any]]:
    """Backbone and neck of a checkpoint of :class:`~lightning_pfc.module.PartialFCModule`, in evaluation mode.

    Returns:
        The network, and the module's hyper-parameters.

    Raises:
        FileNotFoundError: the checkpoint is not there, or was never finished.
        ExportError: it is of another kind of module, or lacks weights.
        CheckpointError: a file of it is damaged.
    """
    content = network_checkpoint(Path(checkpoint))
    values = content.get("hyper_parameters", {})
    if "state_dict" not in content or not isinstance(values, Mapping) or not isinstance(values.get("backbone"), str):
        raise ExportError(
            "is no checkpoint of a PartialFCModule whose backbone has a name; export it from Python: "
            "lightning_pfc.deploy.export.export_network(...)",
            checkpoint,
        )
    try:
        values = module_arguments(values)
        check_sizes({**values, "num_classes": None}, {**content["state_dict"], "head.weight": None})
    except ValueError as error:
        raise ExportError(str(error), checkpoint) from error
    options = dict(values.get("backbone_options") or {})
    config = NetworkConfig(
        backbone=values["backbone"],
        input_size=_input_size(values, options),
        embedding_dim=int(values.get("embedding_dim", 512)),
        neck=str(values.get("neck", "bn")),
        dropout=float(values.get("dropout", 0.0)),
        backbone_options=options,
        channels_last=bool(values.get("channels_last", False)),
    )
    model = EmbeddingModel(config)
    weights = {k: v for k, v in content["state_dict"].items() if k.startswith(("backbone.", "neck."))}
    if missing := [name for name in model.state_dict() if name not in weights]:
        raise ExportError(f"lacks {len(missing)} weights of the model, the first is {missing[0]}", checkpoint)
    model.load_state_dict(weights)
    return model.eval(), dict(values)


def _input_size(values: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[int, int, int]:
    given = as_input_size(values.get("input_size"))
    return given or native_input_size(create_backbone(values["backbone"], options=options))
