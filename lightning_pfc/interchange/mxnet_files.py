"""Partial FC and arcface_mxnet, which are written in MXNet: read without it, and written as theirs are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lightning_pfc.interchange.equal_parts import in_equal_parts
from lightning_pfc.interchange.exported import Exported
from lightning_pfc.interchange.files import as_matrix, describe
from lightning_pfc.interchange.imported import (
    HEAD,
    MOMENTUM,
    Imported,
    check_alike,
    check_ranges,
    files_by_rank,
    momenta_beside,
    take_backbone,
)
from lightning_pfc.interchange.ir_names import is_iresnet
from lightning_pfc.interchange.mxnet_arrays import read_mxnet, write_mxnet
from lightning_pfc.interchange.mxnet_names import as_iresnet, as_mxnet

_CENTERS = ("fc7_weight", "fc7_bias")
NETWORK = "model-0000.params"


def mxnet(source: Path) -> Imported:
    """A folder with ``N_centers.param`` (and ``_mom``) of each rank, or a network's ``.params`` file.

    A file may have the network, of which an LResNet of version 3 with output E is taken, the head ``fc7``, or both; a
    folder may have the network in one ``.params`` file.

    Raises:
        OSError, ValueError: naming the file, and what was expected.
    """
    if not source.is_dir():
        return _from_params(source)
    files = files_by_rank(source, r"(\d+)_centers\.param")
    networks = sorted(source.glob("*.params"))
    if not files and len(networks) != 1:
        which = ", ".join(path.name for path in networks[:6])
        has = f"has {which}: give one of them" if networks else "has neither"
        raise ValueError(f"{source} should hold N_centers.param of every rank, or one .params file, and {has}.")
    found = _from_params(networks[0]) if len(networks) == 1 else Imported()
    if not files:
        return found
    found.padding = len(files) - 1
    found.parts[HEAD] = [_bank(path) for path in files]
    check_ranges(found.parts[HEAD], files)
    momenta = [path.with_name(f"{rank}_centers_mom.param") for rank, path in enumerate(files)]
    if momenta_beside(momenta):
        found.parts[MOMENTUM] = [_bank(path) for path in momenta]
        check_alike(found.parts[MOMENTUM], found.parts[HEAD], momenta)
    return found


def _from_params(path: Path) -> Imported:
    arrays: dict[str, Tensor] = {}
    for key, array in read_mxnet(path).items():
        name = key.removeprefix("arg:").removeprefix("aux:")
        if name in arrays:
            raise ValueError(f"{path} has two arrays of one name, {name} as arg: and as aux:. Save the one meant.")
        arrays[name] = array
    centers, network = _split(arrays)
    found = Imported()
    if "fc7_weight" in centers:
        found.parts[HEAD] = [as_matrix(centers["fc7_weight"], f"fc7_weight in {path}")]
    if (backbone := as_iresnet(network)) is not None:
        take_backbone(found, backbone, str(path))
        found.notes.append("the first convolution and variances changed for pictures in [-1, 1] and our batch norms")
    if not found.parts:
        raise ValueError(
            f"{path} should hold fc7_weight, the centers, or an LResNet of version 3 with output E (fresnet.py), and "
            f"is {describe(arrays)}."
        )
    if network and backbone is None:
        found.notes.append(f"left out: {len(network)} other arrays, of a network that this package has not")
    if "fc7_bias" in centers:
        found.notes.append("left out: fc7_bias (a margin softmax has no bias)")
    return found


def _split(arrays: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The head's arrays, and the others."""
    centers = {name: arrays[name] for name in _CENTERS if name in arrays}
    return centers, {name: array for name, array in arrays.items() if name not in centers}


def _bank(path: Path) -> Tensor:
    arrays = read_mxnet(path)
    if len(arrays) != 1:
        raise ValueError(f"{path} should hold one array, the centers of a rank, and is {describe(arrays)}.")
    [bank] = arrays.values()
    return as_matrix(bank, str(path))


def write_network(source: Exported, folder: Path, what: str) -> str:
    """Write an IResNet as ``model-0000.params``; any other backbone is left out.

    Returns:
        What to say of it; nothing without a backbone.

    Raises:
        ValueError: theirs cannot compute it.
    """
    if not source.backbone:
        return ""
    if not is_iresnet(source.backbone):
        return f"left out: the backbone ({len(source.backbone)} tensors), which is no IResNet"
    write_mxnet(folder / NETWORK, as_mxnet(source.backbone, what))
    return f"the backbone in {NETWORK}"


def write_centers(source: Exported, folder: Path, ranks: int) -> str:
    """Write ``N_centers.param`` for each of ``ranks`` ranks, all with as many rows."""

    def write(place: Path, rank: int, rows: Tensor) -> None:
        write_mxnet(place / f"{rank}_centers.param", {"": rows}, names=False)

    return in_equal_parts(source, folder, ranks, write)
