"""What a file may set. Everything else comes from the user's own words.

A checkpoint holds the arguments with which its module was made. Some arguments of third-party code open files, make
connections or write: a file that could set them would do so on whoever loads it. Therefore each constructor has a list
of arguments that were looked at, and what else a file says is refused with the way out: to say it oneself.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


BACKBONE_OPTIONS = _words(
    """
    aa_layer act_layer attn_drop_rate attn_mlp_ratio attn_ratio avg_down base_dims base_width block_reduce_first
    blocks bn_size bottle_ratio cardinality channels class_token conv_bias conv_mlp depth depths dim dim_mul dims
    distilled down_kernel_size drop_block_rate drop_path_rate drop_rate dynamic_img_pad dynamic_img_size embed_dim
    embed_dims embedding_dim expand_ratio fc_norm final_norm fix_init fix_stem focal_levels focal_windows fused_conv
    global_pool grad_checkpointing groups growth_rate head_bias head_dim head_hidden_size head_init_scale head_mul
    head_norm_first heads img_size in_chans init_values kernel_size kernel_sizes key_dim layer_scale_init_value
    layers ls_init_value mask_ratio memory_efficient mlp_layer mlp_ratio mlp_ratios no_embed_class norm_eps
    norm_layer num_features num_heads num_init_features num_kv_heads num_reg_tokens num_vit out_features output_norm
    output_stride pad_type patch_drop_rate patch_kernel patch_norm patch_padding patch_size patch_stride
    pooling_kernel_size pos_drop_rate pos_embed pre_norm preact proj_bias proj_drop_rate q_pool q_stride qk_dim
    qk_norm qkv_bias reg_tokens scale se_ratio sr_ratios stages stem_chs stem_kernel_size stem_size stem_stride
    stem_type stem_width strict_img_size strides swiglu_mlp use_abs_pos_emb use_fc_norm use_grn use_layer_scale
    use_pos_emb use_pos_embed use_rel_pos_bias use_rope use_shared_rel_pos_bias weight_init width width_factor
    width_mult widths window_ratio window_size window_sizes zero_init_last
    """
)
"""Of ``timm.create_model`` and of the networks behind it: numbers, flags and words that shape a network."""

HEAD_OPTIONS = _words(
    """
    additions auxiliary_losses check_finite chunk_size dtype gradient_filter init init_std memory_budget precision
    rows_on sample_rate sampler seed
    """
)
"""Of :class:`~lightning_pfc.PartialFC`, beside what the module passes to it."""

HEAD_OPTIONS_LEFT_OUT = ("row_folder", "kernels", "match")
"""Where rows are kept and by what they are computed with is a matter of the machine: it is left out. Whose they are
is a matter of the data."""

MODULE_ARGUMENTS = _words(
    """
    backbone backbone_options channels_last dropout embedding_dim head head_options input_size loss neck num_classes
    optimizer preprocessing sample_rate scheduler seed
    """
)
"""Of :class:`~lightning_pfc.PartialFCModule`; ``pretrained`` is not among them, since the file holds the weights."""

_said: ContextVar[frozenset[str] | None] = ContextVar("said", default=None)
_LEFT_OUT = ("pretrained", "_instantiator", "_class_path")  # the last two are how LightningCLI would make the module
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")  # of a network, with the tag of its weights
_MOST_VALUES, _MOST_DEPTH = 10_000, 10
_MOST_OF_AN_OPTION = 1 << 16
_MOST_PIXELS = 1 << 26


def module_arguments(
    stored: Any, said: Mapping[str, Any] | None = None, known: Collection[str] = MODULE_ARGUMENTS
) -> dict[str, Any]:
    """The arguments of a module from the hyper-parameters of a file.

    Args:
        stored: what the file says.
        said: what the user says, in place of what the file does.
        known: arguments that are reviewed here; those of a subclass of the user's go through as they are.

    Returns:
        Both together.

    Raises:
        ValueError: for a value that a file may not set, naming it, and what to say instead.
    """
    said = said or {}
    if not isinstance(stored, Mapping) or not all(isinstance(key, str) for key in stored):
        raise ValueError(f"its hyper_parameters are a {type(stored).__name__}, where names and values are needed")
    found: dict[str, Any] = {}
    for key, value in stored.items():
        if key in said or key in _LEFT_OUT or (key == "head_options" and "head" in said):
            continue
        found[key] = _reviewed(key, value) if key in known else value
    return {**found, **said}


@contextlib.contextmanager
def built_from_a_file(said: Collection[str]) -> Iterator[None]:
    """While a module is built with arguments of a file, even through methods of a subclass.

    Args:
        said: arguments that the user has given.
    """
    token = _said.set(frozenset(said))
    try:
        yield
    finally:
        _said.reset(token)


def review_backbone(name: str, options: Mapping[str, Any]) -> None:
    """Within :func:`built_from_a_file`: see that a network to be built is one that the file may ask for.

    Raises:
        ValueError: if it is not.
    """
    said = _said.get()
    if said is not None and "backbone" not in said:
        check_backbone(name)
    if said is not None and "backbone_options" not in said:
        check_backbone_options(options)


def check_sizes(values: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """See that what is going to be built is no larger than what the file holds, before any of it is made.

    Args:
        values: of :func:`module_arguments`.
        weights: the ``state_dict`` of the file.

    Raises:
        ValueError: if the weights of the backbone or of the head have other shapes.
    """
    classes, width, centers = values.get("num_classes"), values.get("embedding_dim"), weights.get("head.weight")
    if isinstance(centers, Tensor):
        fits = centers.dim() == 2 and centers.shape[0] == classes
        if not fits or (isinstance(width, int) and centers.shape[1] % width):
            shape = tuple(centers.shape)
            raise ValueError(f"it sets num_classes={classes}, embedding_dim={width}, and its head.weight has {shape}")
    neck = [t.shape[0] for key, t in weights.items() if key.startswith("neck.") and isinstance(t, Tensor) and t.dim()]
    if isinstance(width, int) and values.get("neck") != "none" and width not in neck:
        raise ValueError(f"it sets embedding_dim={width}, and its neck has {sorted(set(neck))}")
    if not isinstance(values.get("backbone"), str):
        return
    for name, expected in _shapes(values).items():
        found = weights.get(f"backbone.{name}", weights.get(f"backbone._orig_mod.{name}"))
        if not isinstance(found, Tensor) or found.shape != expected:
            what = f"has the shape {tuple(found.shape)}" if isinstance(found, Tensor) else "is missing"
            raise ValueError(
                f"its backbone.{name} {what}, and {values['backbone']} as it asks for it has {tuple(expected)}"
            )


def _shapes(values: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Of the parameters of a backbone, found without storage; empty for the few that cannot be built so."""
    from lightning_pfc.models.backbone import create_backbone

    try:
        with torch.device("meta"):
            network = create_backbone(
                values["backbone"], input_size=values.get("input_size"), options=values.get("backbone_options")
            )
    except Exception:  # what is wrong with it is said when it is built
        return {}
    return {name: parameter.shape for name, parameter in network.named_parameters()}


def _reviewed(key: str, value: Any) -> Any:
    if key == "backbone":
        check_backbone(value)
        return value
    if key == "backbone_options":
        check_backbone_options(value)
    elif key in ("head", "head_options") and value is not None:
        value = _head_options(key, value)
    elif key == "loss":
        value = _without_class_path(value)
    _check_plain(key, value)
    if key == "input_size":
        sizes = [value] if isinstance(value, int) else value or []
        if not all(type(n) is int for n in sizes) or math.prod(sizes) > _MOST_PIXELS:
            raise ValueError(f"it sets input_size={_short(value)}; say it yourself, as input_size=...")
    elif key in ("num_classes", "embedding_dim") and (type(value) is not int or value < 1):
        raise ValueError(f"it sets {key}={_short(value)}, which is not a number from 1 on")
    return value


def check_backbone(name: Any) -> None:
    """See that a file names a network that is installed, and not one to be fetched or found in a folder.

    Raises:
        ValueError: if it does not.
    """
    import timm

    from lightning_pfc import models  # noqa: F401 - registers the package's own

    if isinstance(name, str) and _NAME.fullmatch(name) and timm.is_model(name.split(".")[0]):
        return
    close = difflib.get_close_matches(str(name), timm.list_models(), n=1) if isinstance(name, str) else []
    hint = f" (the nearest that is: {close[0]})" if close else ""
    raise ValueError(
        f"it sets backbone={_short(name)}, which is not the name of an installed network{hint}; nothing is fetched or "
        "opened for a file's word. Say it yourself, as backbone=..."
    )


def check_backbone_options(options: Any) -> None:
    """See that a file sets only options that shape a network.

    Raises:
        ValueError: if it does not.
    """
    for key, value in _mapping("backbone_options", options).items():
        if key not in BACKBONE_OPTIONS:
            raise ValueError(
                f"it sets backbone_options.{key}={_short(value)}, which a file may not: it could open files or "
                "connections. Say it yourself, as backbone_options=..."
            )
        _check_plain(f"backbone_options.{key}", value)
        if any(isinstance(number, int) and abs(number) > _MOST_OF_AN_OPTION for number in _leaves(value)):
            raise ValueError(f"it sets backbone_options.{key}={_short(value)}, more than any network has")


def _head_options(name: str, options: Any) -> dict[str, Any]:
    options = _mapping(name, options)
    found = {key: value for key, value in options.items() if key not in HEAD_OPTIONS_LEFT_OUT}
    for key, value in found.items():
        if key not in HEAD_OPTIONS:
            raise ValueError(
                f"it sets {name}.{key}={_short(value)}, which a file may not. Say it yourself, as {name}=..."
            )
    return found


def _mapping(key: str, value: Any) -> Mapping[Any, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"it sets {key}={_short(value)}, where names and values are needed")
    return value or {}


def _without_class_path(value: Any) -> Any:
    """The form in which LightningCLI writes a loss, in ours; nothing is imported for it."""
    if isinstance(value, Mapping) and "class_path" in value:
        arguments = value.get("init_args") or {}
        if set(value) <= {"class_path", "init_args"} and isinstance(arguments, Mapping) and "name" not in arguments:
            return {"name": str(value["class_path"]).rpartition(".")[2], **arguments}
        raise ValueError(f"it sets loss={_short(value)}, which is not a loss")
    return value


def _check_plain(key: str, value: Any) -> None:
    """Names, numbers and collections of them: no path, no address.

    Raises:
        ValueError: for anything else.
    """
    for count, leaf in enumerate(_leaves(value)):
        if count >= _MOST_VALUES:
            raise ValueError(f"it sets {key} to more than {_MOST_VALUES} values")
        if leaf is None or isinstance(leaf, bool | int | float) or leaf == "":
            continue
        if not isinstance(leaf, str) or not _WORD.fullmatch(leaf):
            raise ValueError(
                f"it sets {key} to {_short(leaf)}, which is neither a number nor a plain word. Say it yourself, as "
                f"{key.split('.')[0]}=..."
            )


def _leaves(value: Any, depth: int = 0) -> Iterator[Any]:
    if depth > _MOST_DEPTH:
        raise ValueError("it sets an argument to lists within lists")
    if isinstance(value, Mapping):
        value = [part for item in value.items() for part in item]
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for item in value:
            yield from _leaves(item, depth + 1)
    else:
        yield value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
