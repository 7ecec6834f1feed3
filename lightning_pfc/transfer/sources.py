"""Where weights come from: tensors by name, read when they are wanted, and never code."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.checkpoint.errors import CheckpointError
from lightning_pfc.checkpoint.identities import Identities
from lightning_pfc.checkpoint.manifest import is_checkpoint_folder, unfinished_folder
from lightning_pfc.checkpoint.reader import MODEL, CheckpointReader
from lightning_pfc.checkpoint.single import OWN
from lightning_pfc.interchange.files import describe, read_file
from lightning_pfc.runs.own_checkpoint import own_checkpoint
from lightning_pfc.storage.regular import check_regular

HUB = "hf-hub:"
_WRAPPED = ("state_dict", "model_state_dict", "model", "net", "backbone", "state_dict_backbone")
_OF_A_HUB = (("model", ".safetensors"), ("pytorch_model", ".bin"))


class Weights:
    """Tensors by name, of which nothing is read before it is asked for.

    Attributes:
        shapes: of all of them.
        identities: the names of the classes, where the source knows them.
    """

    shapes: dict[str, tuple[int, ...]]
    identities: Identities | None = None

    def whole(self, name: str) -> Tensor:
        """One tensor."""
        raise NotImplementedError

    def rows(self, name: str, start: int, stop: int) -> Iterator[Tensor]:
        """Rows of one, in parts."""
        raise NotImplementedError


class _Checkpoint(Weights):
    """A checkpoint of this package, of any number of ranks, or any of Lightning."""

    def __init__(self, path: Path) -> None:
        self._source = source = CheckpointReader(path)
        self._small = {k: v for k, v in source.rest["state_dict"].items() if isinstance(v, Tensor)}
        large = {key.removeprefix(MODEL): tuple(e.shape) for key, e in source.tensors.items() if key.startswith(MODEL)}
        self.shapes = {**{name: tuple(value.shape) for name, value in self._small.items()}, **large}
        self.identities = source.identities

    def whole(self, name: str) -> Tensor:
        return self._small[name] if MODEL + name not in self._source.tensors else self._source.whole(MODEL + name)

    def rows(self, name: str, start: int, stop: int) -> Iterator[Tensor]:
        if MODEL + name in self._source.tensors:
            yield from self._source.read(MODEL + name, start, stop)
        else:
            yield self._small[name][start:stop]


class _Tensors(Weights):
    """A state dict; large tensors stay in their file until they are touched."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.shapes = {name: tuple(value.shape) for name, value in tensors.items()}

    def whole(self, name: str) -> Tensor:
        return self._tensors[name].detach()

    def rows(self, name: str, start: int, stop: int) -> Iterator[Tensor]:
        value = self.whole(name)
        yield value if value.layout != torch.strided else value[start:stop]  # refused by who asks


class _Safetensors(Weights):
    """Files of safetensors that belong together."""

    def __init__(self, paths: list[Path]) -> None:
        from safetensors import safe_open

        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Any] = {}
        for path in paths:
            check_regular(path)
            try:
                file = safe_open(path, framework="pt")
                for name in file.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118
                    if name in self._files:
                        raise CheckpointError(f"{path} and another file beside it both have {name}. Give one of them.")
                    self.shapes[name] = tuple(file.get_slice(name).get_shape())  # type: ignore[no-untyped-call]
                    self._files[name] = file
            except CheckpointError:
                raise
            except Exception as error:  # of safetensors' own kinds
                raise CheckpointError(f"{path} is no safetensors file, or damaged ({error}).") from error

    def whole(self, name: str) -> Tensor:
        found: Tensor = self._files[name].get_tensor(name)
        return found

    def rows(self, name: str, start: int, stop: int) -> Iterator[Tensor]:
        yield self._files[name].get_slice(name)[start:stop]


def find_source(place: str) -> Path | None:
    """The file or folder that holds the weights; of a run folder, its newest checkpoint. None for one of a hub.

    Raises:
        FileNotFoundError, CheckpointError: there is nothing of the kind.
    """
    if place.startswith(HUB):
        return None
    if "://" in place:
        raise FileNotFoundError(
            f"init_from={place} is an address, and nothing is fetched from one. Give the path of a file that you have "
            f"fetched, or {HUB}OWNER/MODEL."
        )
    path = Path(place).absolute()
    if not place.strip() or not path.exists():
        raise FileNotFoundError(
            f"init_from={place}: there is no such file or folder. Give a checkpoint, a run folder, a state dict, "
            f"safetensors, a folder of the Hugging Face hub, or {HUB}OWNER/MODEL."
        )
    if not path.is_dir() or is_checkpoint_folder(path) or _of_a_hub(path):
        return path
    try:
        own = own_checkpoint(path)
    except ValueError as error:
        raise CheckpointError(f"init_from={place}: {error}") from None
    if own is not None:
        return own
    if others := sorted((path / "checkpoints").glob("*.ckpt"), key=lambda each: each.stat().st_mtime):
        return others[-1]
    raise CheckpointError(
        f"init_from={place} should be a checkpoint, a run folder with checkpoints/, or a folder with model.safetensors "
        "or pytorch_model.bin; it has none of them."
    )


def open_weights(place: str) -> Weights:
    """Open what ``init_from=`` names. Nothing is executed, and no other file is read for the word of one.

    Raises:
        FileNotFoundError: there is nothing.
        CheckpointError: it is damaged, holds other things than tensors and plain values, or no weights.
    """
    path = find_source(place)
    try:
        if path is None:
            from timm.models import load_state_dict_from_hf

            return _Tensors(_as_weights(load_state_dict_from_hf(place.removeprefix(HUB), weights_only=True), place))
        if path.is_dir() and not is_checkpoint_folder(path):
            files = _of_a_hub(path)
            if not files:
                raise unfinished_folder(path)
            if files[0].suffix == ".safetensors":
                return _Safetensors(files)
            return _Tensors(_joined(files))
        if path.is_dir():
            return _Checkpoint(path)
        if path.suffix == ".safetensors":
            return _Safetensors([path])
        content = read_file(path)
        ours = isinstance(content, Mapping) and OWN in content and "state_dict" in content
        return _Checkpoint(path) if ours else _Tensors(_as_weights(content, str(path)))
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        if path is not None:
            raise
        raise FileNotFoundError(f"init_from={place}: {str(error).splitlines()[0]}") from error  # of the hub
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise CheckpointError(f"init_from={place} cannot be used: {str(error).splitlines()[0]}") from error


def _joined(files: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of files that belong together.

    Raises:
        CheckpointError: one is in two of them, which then do not.
    """
    found: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in _as_weights(read_file(file), str(file)).items():
            if name in found:
                raise CheckpointError(f"{file} and another file beside it both have {name}. Give one of them.")
            found[name] = tensor
    return found


def _of_a_hub(folder: Path) -> list[Path]:
    """A hub's file of the weights, or all of its parts; none in another folder.

    Raises:
        CheckpointError: a part is missing.
    """
    for name, suffix in _OF_A_HUB:
        if (whole := folder / f"{name}{suffix}").exists():
            return [whole]
        if found := sorted(folder.glob(f"{name}*{suffix}")):
            _check_all_there(found)
            return found
    return []


def _check_all_there(paths: Sequence[Path]) -> None:
    counted = [match for path in paths if (match := re.search(r"-(\d+)-of-(\d+)\.", path.name))]
    there, total = {int(match[1]) for match in counted}, max((int(match[2]) for match in counted), default=0)
    if len(there) < total:
        missing = next(number for number in itertools.count(1) if number not in there)
        raise CheckpointError(
            f"{paths[0].parent} has {len(there)} of {total} parts of the weights. Copy number {missing} too."
        )


def _as_weights(content: Any, where: str) -> dict[str, Tensor]:
    """The state dict in a file, alone or under one of its usual names."""
    inner = [content, *(content.get(word) for word in _WRAPPED)] if isinstance(content, Mapping) else []
    for each in inner:
        if isinstance(each, Mapping) and each:
            found = {str(key): value for key, value in each.items() if isinstance(value, Tensor)}
            if len(found) == len(each) or (found and each is not content):
                return found
    raise CheckpointError(
        f"{where} should hold weights, tensors by name, alone or as one of {', '.join(_WRAPPED)}, and is "
        f"{describe(content)}."
    )
