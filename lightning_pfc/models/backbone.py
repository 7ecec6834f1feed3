"""Any model of timm as a backbone, with the width that it really gives."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from lightning_pfc.other_names import own_name

InputSize = tuple[int, int, int]  # (C, H, W)

_UNKNOWN_SIZE: InputSize = (3, 224, 224)


def as_input_size(size: int | Sequence[int] | None) -> InputSize | None:
    """(C, H, W) from itself, from (H, W) or from one number, both with three channels; None stays None.

    Raises:
        ValueError: for other shapes or sizes below 1.
    """
    if size is None:
        return None
    numbers = [size] if isinstance(size, int) else list(size)
    if not numbers or len(numbers) > 3 or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in numbers):
        raise ValueError(f"input_size={size!r} must be (C, H, W), (H, W) or one number, all positive integers.")
    if len(numbers) == 1:
        numbers *= 2
    channels, height, width = numbers if len(numbers) == 3 else (3, *numbers)
    return channels, height, width


def create_backbone(
    name: str,
    *,
    input_size: int | Sequence[int] | None = None,
    pretrained: bool = False,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A timm model without its classifier: images (B, C, H, W) -> features (B, F); :func:`output_width` tells F.

    Args:
        name: any name of ``timm.list_models()``, this package's own backbones included, or ``"hf-hub:owner/model"``.
        input_size: (C, H, W) of the images; C of any number (timm adapts pretrained weights). Models that are built for
            one size (vision transformers, the face backbones) are built for this one. None: what the model's weights
            were trained on.
        pretrained: load timm's pretrained weights (a download). Pictures come scaled to [-1, 1]; weights that were
            trained on another scale are warned of.
        options: further arguments of ``timm.create_model``, such as ``drop_path_rate``.

    Raises:
        ValueError: for a name that does not exist, with those that are close; or for an option the model does not take.
    """
    size = as_input_size(input_size)
    arguments: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0}
    if size is not None:
        arguments["in_chans"] = size[0]
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
        if getattr(config, "fixed_input_size", False):
            arguments["img_size"] = size[1:]
    arguments.update(options or {})
    try:
        model: nn.Module = timm.create_model(name, **arguments)
    except RuntimeError as error:
        if not str(error).startswith("Unknown model"):
            raise
        own = own_name(name)
        close = [own] if own else difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=5)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(
            f"backbone {name!r} does not exist.{hint} `timm.list_models()` lists all {len(timm.list_models())} names."
        ) from error
    except TypeError as error:
        raise ValueError(f"backbone {name!r} does not take the options {dict(options or {})}: {error}") from error
    if pretrained:
        _warn_of_scale(name, model)
    return model


def _warn_of_scale(name: str, model: nn.Module) -> None:
    """Say that the pixels will be others than those that timm notes for the weights."""
    noted = getattr(model, "pretrained_cfg", None) or {}
    mean, std = (noted.get(key) for key in ("mean", "std"))
    if not mean or not std or all(math.isclose(value, 0.5) for value in (*mean, *std)):
        return
    warnings.warn(
        f"The weights of backbone {name!r} were trained on pixels less {tuple(mean)}, over {tuple(std)}; here they "
        "come less 0.5, over 0.5. Training adapts the network to that, but layers that are kept frozen "
        "(finetune=frozen, lora) see other pixels than they know: train all layers, or choose weights that timm notes "
        "with 0.5 and 0.5.",
        stacklevel=3,
    )


def native_input_size(model: nn.Module) -> InputSize:
    """(C, H, W) that timm notes for the model's weights, or (3, 224, 224) for a model that says nothing."""
    config = getattr(model, "pretrained_cfg", None)
    size = config.get("input_size") if isinstance(config, Mapping) else getattr(config, "input_size", None)
    return as_input_size(size) or _UNKNOWN_SIZE


_VECTORS = "Where the input is vectors of K numbers, begin with nn.Flatten() and give input_size=(1, 1, K)."


def output_width(model: nn.Module, input_size: InputSize) -> int:
    """F of the features (B, F) that a model gives, found by running it.

    ``num_features`` cannot be trusted: timm's ``mobilenetv3_small_050`` says 288 and gives 1024. The run is on tensors
    without storage where the model allows that (no time, no memory), else on one black image. Weights, buffers and mode
    stay as they are.

    Raises:
        ValueError: if the model does not accept the input, or gives anything but one vector per image.
    """
    training = {name for name, child in model.named_modules() if child.training}
    model.eval()
    try:
        output = _run(model, input_size)
    except Exception as error:
        raise ValueError(
            f"backbone {type(model).__name__} does not accept images of (C, H, W) = {input_size}: {error}. "
            f"Choose another input_size or backbone. {_VECTORS}"
        ) from error
    finally:
        for name, child in model.named_modules():
            child.training = name in training
    if not isinstance(output, Tensor) or output.dim() != 2:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"backbone {type(model).__name__} gives {found} for one image, but an embedding needs one vector (1, F); "
            f"let it pool (timm: global_pool='avg'). {_VECTORS}"
        )
    return output.shape[1]


@torch.no_grad()
def _run(model: nn.Module, input_size: InputSize) -> Any:
    tensors = {name: t for group in (model.named_parameters(), model.named_buffers()) for name, t in group}
    without_storage = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    try:
        return torch.func.functional_call(model, without_storage, (torch.zeros((1, *input_size), device="meta"),))
    except Exception:  # whatever a model does that tensors without storage cannot: ask it with real ones
        if any(tensor.is_meta for tensor in tensors.values()):
            raise
        like = next((t for t in tensors.values() if t.is_floating_point()), torch.zeros(0))
        return model(torch.zeros((1, *input_size), device=like.device, dtype=like.dtype))
