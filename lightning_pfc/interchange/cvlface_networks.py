"""CVLface's networks: which of theirs a network of ours is, how theirs is told of it, and what theirs is here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_pfc.interchange.ir_names import as_ir, blocks_of, is_iresnet, trained_first_shortcut
from lightning_pfc.interchange.vit_names import ViTSize, is_face_vit, size_of, without_mask_token

_IRESNETS: dict[tuple[int, ...], str] = {(2, 2, 2, 2): "ir18", (3, 4, 14, 3): "ir50", (3, 13, 30, 3): "ir101"}
_TOKENS = (112 // 8) ** 2
_VITS = {"small": ViTSize(512, 12, 8, 5, _TOKENS), "base": ViTSize(512, 24, 8, 3, _TOKENS)}
_HEADS = {"small": 8, "base": 16}
_OURS = 8  # heads of a FaceViT that nobody said anything else of
_PLACES = 7 * 7  # of the last map, of pictures of 112 x 112

ELSE = "Take --to insightface, or --to linear for the head alone."


@dataclass(frozen=True)
class Network:
    """One of theirs.

    Attributes:
        kind: the folder of its code, below ``models``.
        name: among those of its kind.
        tensors: by its names, without the ``net.`` before them.
    """

    kind: str
    name: str
    tensors: Mapping[str, Tensor]

    def config(self) -> dict[str, Any]:
        """What ``model.yaml`` says beside its weights."""
        last = "feature.2.weight" if self.kind == "vit" else "fc.weight"
        last = "output_layer.3.weight" if self.kind == "iresnet" else last
        masked = {"mask_ratio": 0.0} if self.kind == "vit" else {}
        return {
            "input_size": [3, 112, 112],
            "color_space": "RGB",
            "name": self.name,
            "output_dim": self.tensors[last].shape[0],
            "start_from": "",
            "freeze": False,
            "yaml_path": f"/{self.kind}/configs/v1_{self.name}.yaml",
            **masked,
        }


def theirs(backbone: Mapping[str, Tensor], heads: int | None, what: str) -> Network | None:
    """Which of theirs a backbone of ours is; None for one that is neither an IResNet nor a FaceViT.

    Args:
        backbone: its tensors.
        heads: attention heads of a FaceViT, where that is known.
        what: names it, for messages.

    Raises:
        ValueError: it is of such a kind, and none of theirs computes it.
    """
    if is_iresnet(backbone):
        return _iresnet(backbone, what)
    return _vit(backbone, heads, what) if is_face_vit(backbone) else None


def _iresnet(backbone: Mapping[str, Tensor], what: str) -> Network:
    name, width = _IRESNETS.get(blocks_of(backbone)), backbone["fc.weight"].shape[1]
    if name is None or width != 512 * _PLACES or backbone["conv1.weight"].shape[1] != 3:
        raise ValueError(
            f"{what} has an IResNet of {blocks_of(backbone)} blocks and {width} numbers before fc; CVLface has ir18, "
            f"ir50 and ir101, for pictures of 112 x 112 in colours. {ELSE}"
        )
    trained = trained_first_shortcut(backbone)
    if trained is None:
        return Network("iresnet", name, as_ir(backbone, what, bgr=False))
    if name != "ir101" or backbone["fc.weight"].shape[0] != 512:
        raise ValueError(
            f"{what}: {trained} is a layer of the first shortcut, which has been trained; of CVLface's networks only "
            f"an ir101 of width 512 can have it. {ELSE}"
        )
    return Network("iresnet_insightface", name, backbone)


def _vit(backbone: Mapping[str, Tensor], heads: int | None, what: str) -> Network:
    found = size_of(backbone)
    name = _name_of(found)
    if name is None:
        raise ValueError(
            f"{what} has a FaceViT of width {found.width}, {found.depth} blocks, patches of {found.patch} and "
            f"mlp_ratio {found.mlp_ratio}; CVLface's have width 512, patches of 8, and 12 blocks "
            f"with 5 or 24 with 3. {ELSE}"
        )
    if heads is not None and heads != _HEADS[name]:
        raise ValueError(
            f"{what} has a FaceViT of {heads} attention heads, and CVLface's {name} {_HEADS[name]}. {ELSE}"
        )
    return Network("vit", name, without_mask_token(backbone))


def heads_of(hyper_parameters: Any) -> int | None:
    """Attention heads of a FaceViT, as a checkpoint's own words tell them; None where it has none."""
    said = hyper_parameters if isinstance(hyper_parameters, Mapping) else {}
    options = said.get("backbone_options") or {} if "backbone" in said else None
    found = options.get("num_heads", _OURS) if isinstance(options, Mapping) else None
    return found if isinstance(found, int) else None


def ours(tensors: Mapping[str, Tensor]) -> str | None:
    """The backbone, as a config of ours, that takes the tensors of one of their ViTs; None for other sizes."""
    name = _name_of(size_of(tensors))
    return f"backbone=cvlface_vit_{name}" if name else None


def _name_of(size: ViTSize) -> str | None:
    return next((name for name, each in _VITS.items() if each == size), None)
