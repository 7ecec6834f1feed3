"""ONNX models as embedders: their conventions are read from the file, or asked for by name."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_pfc.checked import checked
from lightning_pfc.data.errors import FormatError, missing_library
from lightning_pfc.data.onnx_files import mended
from lightning_pfc.data.onnx_scale import RANGES, Shown, shown
from lightning_pfc.data.preprocessing import METADATA_KEY, Preprocessing
from lightning_pfc.unreported import import_unreported

Layout = Literal["nchw", "nhwc"]
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_PIXELS = "tensor(uint8)"
_DOORS = "pfc-eval: embedder.NAME=...; pfc-embed, pfc-data overlap: --NAME ..."
_log = logging.getLogger(__name__)


@checked
class OnnxEmbedder:
    """An ONNX model through onnxruntime.

    What the file says is taken from it: names, types, layout and size of its input and output, and the record of
    :class:`~lightning_pfc.data.preprocessing.Preprocessing` in its metadata, as ``pfc-export`` writes it. What it
    leaves open must be given; nothing is taken because it stands first. Without a record the first nodes may show the
    range of the pixels (:mod:`~lightning_pfc.data.onnx_scale`). Where they do not, and ``mean`` and ``std`` are not
    given, pixels are scaled to [-1, 1], as InsightFace's models want them; likewise without ``channels`` the order is
    RGB. Both are warned of, by name.

    Files that list their weights as graph inputs too (as OpenCV's do, and onnxruntime refuses) are mended on the way.

    Args:
        path: The model; its input is a batch of images of floats (16, 32 or 64 bits), or of uint8 pixels, which are
            given as they are.
        mean: Subtracted from pixels in 0..255, one number or one per channel.
        std: What they are divided by then.
        channels: ``"rgb"`` or ``"bgr"``.
        input: Name of the input, needed where there are several.
        output: Name of the embedding's output, needed where there are several.
        layout: ``"nchw"`` or ``"nhwc"``, needed where the shape of the input does not tell.
        input_size: (C, H, W), (H, W) or one number, needed where the model leaves it free.
        providers: Of onnxruntime; None takes the CPU.
        threads: Of onnxruntime; 0 lets it choose.

    Raises:
        FileNotFoundError: When the model is not there.
        FormatError: When the file is no model, or its weights lie in a file outside its folder.
        MissingLibraryError: When onnxruntime (or onnx, for a file to be mended or checked) is not installed.
        ValueError: When the model has another kind of input, or leaves open what is not given.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        channels: Literal["rgb", "bgr"] | None = None,
        input: str | None = None,
        output: str | None = None,
        layout: Layout | None = None,
        input_size: int | Sequence[int] | None = None,
        providers: Sequence[str] | None = None,
        threads: int = 0,
    ) -> None:
        try:
            onnxruntime = import_unreported("onnxruntime")
        except ImportError as error:
            raise missing_library("onnxruntime", "An ONNX model") from error
        if not Path(path).exists():
            raise FileNotFoundError(f"no such model: {path}")
        if channels not in ("rgb", "bgr", None):
            raise ValueError(f"channels={channels!r} is unknown; use 'rgb' or 'bgr'")
        if layout not in ("nchw", "nhwc", None):
            raise ValueError(f"layout={layout!r} is unknown; use 'nchw' or 'nhwc'")
        self._path = os.fspath(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        model, packed, graph = mended(path)
        if packed:  # then onnxruntime unpacks the weights once, and not again for every picture
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = onnxruntime.InferenceSession(
                model, options, providers=list(providers or ["CPUExecutionProvider"])
            )
        except Exception as error:  # the library raises errors of many kinds
            raise FormatError(f"onnxruntime cannot load it: {error}", path=path) from error
        self._output = self._chosen("output", output, self._session.get_outputs()).name
        source = self._chosen("input", input, self._session.get_inputs())
        self._input = source.name
        if len(source.shape) != 4:
            raise ValueError(
                f"{path}: the input {source.name} has the shape {source.shape}; a batch of images has four"
            )
        if source.type != _PIXELS and source.type not in _TYPES:
            raise ValueError(f"{path}: the input {source.name} is a {source.type}; use one of {', '.join(_TYPES)}")
        self._dtype: Any = _TYPES.get(source.type)  # None: pixels as they are
        self._fixed_batch = source.shape[0] if isinstance(source.shape[0], int) else None
        self._layout = layout or self._layout_of(source.shape)
        shape = source.shape if self._layout == "nchw" else [source.shape[0], source.shape[3], *source.shape[1:3]]
        words = {"mean": mean, "std": std, "color": channels}
        self.preprocessing = self._record(self._size(shape[1:], input_size), words, graph)
        self.input_size = self.preprocessing.image_shape

    def __call__(self, pictures: Tensor) -> Tensor:
        """(b, C, H, W) uint8 RGB -> (b, D) float32."""
        if self._dtype is None:
            images = (pictures.flip(1) if self.preprocessing.color == "bgr" else pictures).numpy()
        else:
            images = self.preprocessing.tensor(pictures.cpu()).numpy().astype(self._dtype, copy=False)
        images = np.ascontiguousarray(images if self._layout == "nchw" else images.transpose(0, 2, 3, 1))
        size = self._fixed_batch or len(images)
        rows = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)]) if len(part) < size else part
            found = self._session.run([self._output], {self._input: padded})[0]
            rows.append(np.asarray(found, dtype=np.float32)[: len(part)])
        return torch.from_numpy(np.concatenate(rows)).flatten(1)

    # --- conventions --------------------------------------------------------------------------------------------------

    def _chosen(self, what: str, name: str | None, found: Sequence[Any]) -> Any:
        listed = ", ".join(f"{value.name} {value.shape}" for value in found[:8])
        if name is not None:
            by_name = {value.name: value for value in found}
            if name not in by_name:
                raise ValueError(f"{self._path} has no {what} {name!r}; there are: {listed}")
            return by_name[name]
        if len(found) != 1:
            raise ValueError(
                f"{self._path} must have one {what}, found {len(found)}: {listed}. Name the right one: {what}=NAME"
                + (" (if these are weights, install onnx and try again)" if what == "input" else "")
            )
        return found[0]

    def _layout_of(self, shape: Sequence[Any]) -> Layout:
        first, last = shape[1] in (1, 3), shape[3] in (1, 3)
        if not (first or last) and all(isinstance(edge, int) for edge in shape[1:]):
            raise ValueError(
                f"{self._path}: the shape {list(shape)} of its input has neither 1 nor 3 channels, first or last; "
                "pictures are grey or RGB"
            )
        if first == last:
            raise ValueError(
                f"{self._path}: the shape {list(shape)} of its input does not tell where the channels are; give "
                "layout=nchw or layout=nhwc"
            )
        return "nchw" if first else "nhwc"

    def _size(self, shape: Sequence[Any], given: int | Sequence[int] | None) -> tuple[int, int, int]:
        from lightning_pfc.models.backbone import as_input_size

        wanted = as_input_size(given)
        free = [isinstance(n, int) for n in shape]
        if wanted is None and not all(free):
            raise ValueError(
                f"{self._path} leaves the size of its input free, (C, H, W) = {tuple(shape)}; give input_size=112, or "
                "whatever it was trained on"
            )
        size = shape if wanted is None else wanted
        if wanted is not None and any(isinstance(n, int) and n != w for n, w in zip(shape, wanted, strict=True)):
            raise ValueError(f"input_size={given}: {self._path} wants (C, H, W) = {tuple(shape)}")
        return (int(size[0]), int(size[1]), int(size[2]))

    def _record(self, size: tuple[int, int, int], words: Mapping[str, Any], graph: Any) -> Preprocessing:
        metadata = self._session.get_modelmeta().custom_metadata_map
        text = metadata.get(METADATA_KEY)
        if self._dtype is None and (words["mean"] is not None or words["std"] is not None):
            raise ValueError(f"{self._path} takes pixels as they are (uint8): leave out mean and std")
        if text is None:
            # Aligned pictures have the right size; of others InsightFace resizes the shorter side.
            bare = Preprocessing(size=size[1:], channels=size[0], fit="crop", flip="sum")
            return self._without_record(bare, shown(metadata, graph, self._input), words)
        try:
            record = Preprocessing.from_config(json.loads(text)).changed(size=size[1:], channels=size[0])
        except (ValueError, RecursionError) as error:
            raise FormatError(f"its metadata {METADATA_KEY!r} cannot be read: {error}", path=self._path) from error
        return record.changed(**words)

    def _without_record(self, bare: Preprocessing, found: Shown, words: Mapping[str, Any]) -> Preprocessing:
        """What the file shows, and the user's words before it; what nobody says is warned of."""
        mean, std = found.scaling or (None, None)
        record = bare.changed(mean=mean, std=std, color=found.color).changed(**words)
        scaled = self._dtype is not None
        said = words["mean"] is not None and words["std"] is not None
        unsaid, names = [], []
        if scaled and not said and found.range is None:
            unsaid.append(f"which pixels it takes (taken is {_scaling_of(record)})")
            names += ["mean=127.5", "std=127.5"]
        if bare.channels == 3 and words["color"] is None and found.color is None:
            unsaid.append(f"the order of its colours (taken is {record.color})")
            names.append("channels=rgb or bgr")
        if unsaid:
            _log.warning(
                "%s does not say %s: give %s (%s).", self._path, ", nor ".join(unsaid), ", ".join(names), _DOORS
            )
        if scaled and found.range is not None and not _in_range(record, found.range):
            _log.warning(
                "%s takes pixels from %s, by %s, and you have them scaled to %s first.",
                *(self._path, found.range, found.by, _scaling_of(record)),
            )
        return record


def _scaling_of(record: Preprocessing) -> str:
    mean, std = ("/".join(f"{each:g}" for each in numbers) for numbers in (record.mean, record.std))
    return f"(pixel - {mean}) / {std}"


def _in_range(record: Preprocessing, name: str) -> bool:
    """Whether black and white come to the ends of a range, as nearly as 127.5 and 128 are alike."""
    low, high = RANGES[name]
    mean, std = sum(record.mean) / len(record.mean), sum(record.std) / len(record.std)
    return all(abs((pixel - mean) / std - end) < 0.02 * (high - low) for pixel, end in ((0, low), (255, high)))
