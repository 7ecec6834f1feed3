"""What the commands of ``pfc-ckpt`` do, each given its words."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.checkpoint import verify_folder
from lightning_pfc.checkpoint.edit_classes import KeepRows, NewRows, Piece, joining, rewrite_classes, without
from lightning_pfc.checkpoint.identities import Identities, difference
from lightning_pfc.checkpoint.merging import merge_to_file, merge_to_safetensors
from lightning_pfc.checkpoint.reader import MODEL, CheckpointReader
from lightning_pfc.checkpoint.single import check_file, load_file
from lightning_pfc.commands.class_names import check_alone, check_lines, read_names
from lightning_pfc.commands.running import one_line
from lightning_pfc.heads.center_init import init_centers_
from lightning_pfc.interchange import EXPORTERS, IMPORTERS, write_imported
from lightning_pfc.interchange.recognised import way_out
from lightning_pfc.storage.regular import open_regular


def inspect(options: argparse.Namespace) -> None:
    """Show what is inside."""
    source = CheckpointReader(options.checkpoint, check=False)
    ranks = source.manifest.world_size if source.manifest is not None else 1
    tensors = {
        key: {"shape": entry.shape, "dtype": entry.dtype, "bytes": entry.nbytes, "by_class": entry.by_class}
        for key, entry in source.tensors.items()
    }
    if options.json:
        print(json.dumps({"ranks": ranks, "info": source.info, "tensors": tensors}, indent=1))
        return
    print(f"{options.checkpoint}: written by {ranks or 'pfc-ckpt, no'} rank{'s' if ranks != 1 else ''}")
    for name, value in source.info.items():
        print(f"  {name}: {value}")
    total = sum(entry.nbytes for entry in source.tensors.values())
    print(f"  {len(tensors)} large tensors, {_size(total)}; those marked * have one row per class")
    for key, entry in source.tensors.items():
        mark = "*" if entry.by_class else " "
        print(f"  {mark} {key}  {'x'.join(map(str, entry.shape))}  {entry.dtype}  {_size(entry.nbytes)}")
    if (names := source.identities) is not None:
        print(f"  the names of its {names.count} classes, {names.digest[:12]}")
    print(f"  small parts: {', '.join(sorted(map(str, source.rest)))}")


def verify(options: argparse.Namespace) -> None:
    """Read every byte and compare all checksums."""
    path: Path = options.checkpoint
    if path.is_dir():
        manifest = verify_folder(path)
        count, size = len(manifest.files), sum(entry.size for entry in manifest.files.values())
        rows = ", ".join(f"{key} {'x'.join(map(str, e.shape))}" for key, e in manifest.tensors.items() if e.by_class)
        what = f"{len(manifest.tensors)} tensors, each row of them in one place" + (f" ({rows})" if rows else "")
        print(f"{path}: complete: {what}; {count} files, {_size(size)}, all checksums match.")
        return
    content = load_file(path)
    seal = check_file(path, share=None)
    sums = (
        "the checksums of all its bytes match" if seal else "it has no seal of ours; the checksums of its records match"
    )
    print(f"{path}: complete: {len(content['state_dict'])} tensors of weights; {_size(path.stat().st_size)}, {sums}.")


def merge(options: argparse.Namespace) -> None:
    """Write one file."""
    kind = options.format or ("safetensors" if options.output.suffix == ".safetensors" else "lightning")
    if options.output.exists():
        raise ValueError(f"{options.output} exists; name a new file, so that nothing is lost.")
    (merge_to_safetensors if kind == "safetensors" else merge_to_file)(options.checkpoint, options.output)
    print(f"{options.output}: {_size(options.output.stat().st_size)}")


def drop(options: argparse.Namespace) -> None:
    """Write a checkpoint without some classes."""
    source = CheckpointReader(options.checkpoint)
    total = source.num_classes
    names = _names(options, source, total)
    classes = [row for text in options.classes for row in _classes(text, total, names)]
    _rewrite(options, without(classes, total), names)


def fuse(options: argparse.Namespace) -> None:
    """Write one in which several classes are one."""
    source = CheckpointReader(options.checkpoint)
    total = source.num_classes
    names = _names(options, source, total)
    groups = [_classes(text, total, names) for text in options.classes]
    flat = [row for group in groups for row in group]
    if len(flat) != len(set(flat)):
        raise ValueError("--classes names a class twice; a class can only go into one other.")
    if any(len(group) < 2 for group in groups):
        raise ValueError("--classes needs two classes or more to make one of them.")
    _rewrite(options, joining(groups, total), names)


def append(options: argparse.Namespace) -> None:
    """Write one with more classes at the end."""
    source = CheckpointReader(options.checkpoint)
    total = source.num_classes
    names = _names(options, source, total)
    if (options.count is None) == (options.centers is None):
        raise ValueError("give either --count (random centers) or --centers (mean embeddings).")
    new = NewRows.of(_read_centers(options.centers)) if options.centers is not None else _random(options, source, total)
    added = options.names.split(",") if options.names else []
    if (added or options.identities is not None) and len(added) != new.count:
        raise ValueError(f"--names has {len(added)} names for {new.count} new classes.")
    if names is None and added:
        raise ValueError("--names needs --identities, the names of the classes that are there: it has none itself.")
    check_lines(added, "--names")
    check_alone([*(names or ()), *added], "--names, with those that are there")
    if names is not None and not added:
        print(
            f"the {new.count} new classes have no names (--names): the next run takes them for those behind the "
            f"{total} others in its data"
        )
    _rewrite(options, [KeepRows(0, total), new], names, added)


def take(options: argparse.Namespace) -> None:
    """Write another project's tensors into one safetensors file, under our names."""
    try:
        found = IMPORTERS[options.project](options.source)
    except (OSError, ValueError) as error:
        said = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        said += "" if said.endswith((".", "?")) else "."
        raise ValueError(f"{said}{way_out(options.source, options.project)}") from error
    if options.classes is not None:
        found.cut(options.classes)
    if options.classes is not None and options.classes != found.num_classes:
        raise ValueError(
            f"{options.source} has {found.num_classes} classes, --classes says {options.classes}: is a rank's file "
            "missing?"
        )
    write_imported(found, options.output, options.source)
    kinds = {name.partition(".")[0] for name in found.parts}
    for line in [f"{len(found.parts)} tensors ({', '.join(sorted(kinds))}), {found.num_classes} classes", *found.notes]:
        print(f"{options.output}: {one_line(line)}")


def give(options: argparse.Namespace) -> None:
    """Write a head as another project keeps it."""
    print(f"{options.output}: {EXPORTERS[options.project](options.checkpoint, options.output, options.ranks)}")


def _random(options: argparse.Namespace, source: CheckpointReader, total: int) -> NewRows:
    """New classes with the centers that a head would have drawn for them."""
    if options.count < 1:
        raise ValueError(f"--count={options.count} must be at least 1.")
    widths = {e.shape[1] for k, e in source.tensors.items() if e.by_class and k.startswith(MODEL) and len(e.shape) > 1}
    if len(widths) != 1:
        raise ValueError(f"the heads have widths {sorted(widths)}; give --centers for one of them at a time.")
    [width] = widths

    def draw(start: int, stop: int) -> Tensor:
        return init_centers_(torch.empty(stop - start, width), total + start, options.seed, options.std)

    return NewRows(options.count, draw)


def _rewrite(
    options: argparse.Namespace, pieces: Sequence[Piece], names: list[str] | None, added: Sequence[str] = ()
) -> None:
    count = rewrite_classes(options.checkpoint, options.output, pieces, added)
    if names is not None and options.identities is not None:
        kept: list[str] = []
        for piece in pieces:
            if isinstance(piece, KeepRows):
                kept += names[piece.start : piece.stop]
            elif isinstance(piece, NewRows):
                kept += added
            else:
                kept.append(names[piece.classes[0]])
        path = options.output.with_name(options.output.name + ".identities.txt")
        path.write_text("".join(f"{name}\n" for name in kept), encoding="utf-8", errors="surrogateescape")
        print(f"{path}: the names of the classes, in their new order")
    print(f"{options.output}: {count} classes")


def _names(options: argparse.Namespace, source: CheckpointReader, total: int) -> list[str] | None:
    """Of the classes: what the user says, else what the checkpoint does.

    Raises:
        ValueError: if both do, and differ.
    """
    given, stored = read_names(options.identities, total), source.identities
    if stored is None:
        return given
    if given is not None and (found := difference(stored, Identities.of(given))) is not None:
        raise ValueError(f"--identities={options.identities}: {found.replace('the data', 'that file')}.")
    return list(stored) if given is None else given


def _classes(text: str, total: int, names: list[str] | None) -> list[int]:
    """Class ids out of ``7,100-199`` or names.

    Raises:
        ValueError: for a class that does not exist.
    """
    found: list[int] = []
    for part in text.split(","):
        if names is not None and part and part in names:
            found.append(names.index(part))
            continue
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            known = " and no such name in --identities" if names is not None else "; for names give --identities"
            raise ValueError(f"--classes: {part!r} is neither a class number nor a range{known}.")
        rows = range(int(first), int(last or first) + 1)
        if not rows or rows[-1] >= total:
            raise ValueError(f"--classes: {part!r} is not within the {total} classes, 0 to {total - 1}.")
        found += rows
    return found


def _read_centers(path: Path) -> Tensor:
    """(N, D) of float from a file.

    Raises:
        ValueError: if the file holds anything else, or is damaged.
        OSError: if it cannot be opened.
    """
    readers = {".npy": _read_npy, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        raise ValueError(f"--centers={path} must be a .safetensors or .npy file.")
    os.close(open_regular(path))
    try:
        centers = readers[path.suffix](path)
    except Exception as error:  # of numpy's and safetensors' own kinds
        raise ValueError(f"--centers={path} cannot be read: {error}") from error
    if centers.dim() != 2 or not centers.is_floating_point() or not len(centers):
        raise ValueError(
            f"{path} holds {centers.dtype} of shape {tuple(centers.shape)}; floats of shape (N, D) are needed."
        )
    none = torch.nonzero(~(centers != 0).any(1)).flatten()
    if len(none):
        raise ValueError(
            f"--centers={path}: row {int(none[0])} is all zeros, and so has no direction; {len(none)} are."
        )
    bad = torch.nonzero(~centers.isfinite().all(1)).flatten()
    if len(bad):
        raise ValueError(f"--centers={path}: row {int(bad[0])} has numbers that are not finite; {len(bad)} rows have.")
    return centers


def _read_npy(path: Path) -> Tensor:
    import numpy as np

    mapped: Any = np.load(path, mmap_mode="r", allow_pickle=False)  # a map is never larger than its file
    return torch.from_numpy(np.array(mapped))


def _read_safetensors(path: Path) -> Tensor:
    from safetensors.torch import load_file as load_safetensors

    tensors = list(load_safetensors(path).values())
    if len(tensors) != 1:
        raise ValueError(f"it has {len(tensors)} tensors; one of shape (N, D) is needed")
    return tensors[0]


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"


WORK = {
    "inspect": inspect,
    "verify": verify,
    "merge": merge,
    "drop": drop,
    "fuse": fuse,
    "append": append,
    "import": take,
    "export": give,
}
