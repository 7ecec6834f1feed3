"""Damages checkpoints, and altered ones whose checksums fit, and sees that readers refuse them or read them right.

    python recipes/benchmarks/checkpoint_fuzz/fuzz.py --count 100000

``bytes-...`` change bytes anywhere: every change must be found (but of white space in the manifest). ``fitted-...``
change what a checkpoint says and make the checksums fit, as somebody would who knows the format: it may be read, but
nothing but a CheckpointError may come out.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightning_pfc.checkpoint import CheckpointError, load_folder, save_folder, verify_folder
from lightning_pfc.checkpoint.identities import Identities, difference, in_folder, in_values
from lightning_pfc.checkpoint.manifest import BLOCK, MANIFEST, _digest
from lightning_pfc.checkpoint.reader import read_checkpoint
from lightning_pfc.checkpoint.seal import SealWriter
from lightning_pfc.checkpoint.single import load_file, save_file
from lightning_pfc.checkpoint.split_tree import ClassRows, split_tree
from lightning_pfc.distributed import ClassShard, Comm

CLASSES, WIDTH = 50, 8
NAMES = Identities.of([f"person {number}" for number in range(CLASSES)])
OTHERS = Identities.of([f"person {number + 1}" for number in range(CLASSES)])
INTERESTING: tuple[Any, ...] = (
    0,
    1,
    -1,
    2,
    255,
    1 << 31,
    1 << 63,
    1 << 70,
    0.5,
    1e308,
    None,
    True,
    "",
    "x",
    "../x",
    [],
    {},
    [[]],
    "I64",
)


def make_checkpoint() -> dict[str, Any]:
    """What a small run would save."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(CLASSES, WIDTH, generator=generator)
    backbone = torch.randn(80, 60, generator=generator)
    momentum = {"momentum_buffer": torch.randn(CLASSES, WIDTH, generator=generator)}
    return {
        "state_dict": {"head.weight": weight, "backbone.weight": backbone, "backbone.bias": torch.zeros(80)},
        "optimizer_states": [{"state": {0: momentum}, "param_groups": [{"lr": 0.1, "params": [0, 1, 2]}]}],
        "global_step": 7,
        "epoch": 1,
        "loops": {"fit_loop": {"state_dict": {}}},
        "hyper_parameters": {"num_classes": CLASSES, "loss": {"name": "ArcFace", "scale": 64.0}},
        "lightning_pfc": {
            "by_class": ["state_dict/head.weight", "optimizer_states/0/state/0/momentum_buffer"],
            "run": "0123456789abcdef",
            "identities": NAMES.as_values(),
        },
    }


def write_folder(path: Path) -> None:
    """The checkpoint as a folder."""
    shard = ClassShard(CLASSES, 0, 1)
    checkpoint = make_checkpoint()
    del checkpoint["lightning_pfc"]["identities"]
    rest, tensors = split_tree(checkpoint, lambda key, t: shard if t.shape == (CLASSES, WIDTH) else None)
    save_folder(path, rest, tensors, Comm.single(), {"global_step": 7, "epoch": 1}, identities=NAMES)


class Anything:
    """Takes every tensor, into memory of its own."""

    def __call__(self, key: str, stored: Any) -> ClassRows | None:
        """Have memory made."""
        return None

    def wants(self, key: str) -> bool:
        """Everything is read."""
        return True


def read_folder(path: Path) -> None:
    """Through both doors that a folder has."""
    load_folder(path, Comm.single(), Anything())
    read_checkpoint(path)
    _compare(in_folder(path))


def verify(path: Path) -> None:
    """As ``pfc-ckpt verify`` does."""
    verify_folder(path)


def read_file(path: Path) -> None:
    """Through every door that a file has."""
    content = load_file(path)
    read_checkpoint(path)
    _compare(in_values(content.get("lightning_pfc"), str(path)))


def _compare(names: Identities | None) -> None:
    if names is not None:
        difference(names, OTHERS)


# -- damage


def mutate_bytes(data: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, cut off, doubled or added."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 8, 64))):
        place = draw.randrange(len(out))
        kind = draw.randrange(5)
        if kind <= 1:
            out[place] ^= 1 << draw.randrange(8)
        elif kind == 2:
            out[place] = draw.randrange(256)
        elif kind == 3:
            out[place : place + draw.randrange(1, 40)] = b""
        else:
            out[place:place] = draw.randbytes(draw.randrange(1, 40))
        if not out:
            return b"x"
    return bytes(out) if bytes(out) != data else data[:-1]


def mutate_tree(tree: Any, draw: random.Random) -> Any:
    """One place of a JSON document changed."""
    places: list[tuple[Any, Any]] = []
    pending = [tree]
    while pending:
        node = pending.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                pending.append(node[key])
    for _ in range(draw.choice((1, 1, 2, 5))):
        node, key = draw.choice(places)
        kind = draw.randrange(6)
        try:
            if kind == 0:
                del node[key]
            elif kind == 1 and isinstance(node, list):
                node.append(node[key])
            elif kind == 2 and type(node[key]) is int:
                node[key] += draw.choice((-1, 1, 4, 1 << 20, -(1 << 20)))
            elif kind == 3:
                node[key] = json.loads(json.dumps(draw.choice(places)[0]))
            else:
                node[key] = draw.choice(INTERESTING)
        except (KeyError, IndexError):
            continue
    return tree


def fit_manifest(folder: Path, content: Any) -> None:
    """Write a manifest with a digest that fits."""
    if isinstance(content, dict):
        content.pop("sha256", None)
        content = {"sha256": _digest(content), **content}
    (folder / MANIFEST).write_text(json.dumps(content))


def damage_folder(original: Path, folder: Path, draw: random.Random) -> None:
    """Any file of it."""
    name = draw.choice(sorted(path.name for path in original.iterdir()))
    data = (original / name).read_bytes()
    changed = mutate_bytes(data, draw)
    while name == MANIFEST and changed.split() == data.split():
        changed = mutate_bytes(data, draw)
    (folder / name).write_bytes(changed)


def alter_manifest(original: Path, folder: Path, draw: random.Random) -> None:
    """What the manifest says, its digest made to fit."""
    fit_manifest(folder, mutate_tree(json.loads((original / MANIFEST).read_text()), draw))


def alter_small(original: Path, folder: Path, draw: random.Random) -> None:
    """The pickled part, its size and checksums made to fit."""
    name = "rank-00000.pt"
    data = mutate_archive((original / name).read_bytes(), draw)
    (folder / name).write_bytes(data)
    content = json.loads((original / MANIFEST).read_text())
    sums = [zlib.crc32(data[i : i + BLOCK]) for i in range(0, len(data), BLOCK)]
    content["files"][name] = {"size": len(data), "crc32": sums}
    fit_manifest(folder, content)


def mutate_archive(data: bytes, draw: random.Random) -> bytes:
    """A zip file of torch.save, most often damaged within its pickle, whose place is known."""
    if draw.random() < 0.3:
        return mutate_bytes(data, draw)
    start = data.index(b"\x80\x02")
    stop = start + draw.randrange(1, 1200)
    return data[:start] + mutate_bytes(data[start:stop], draw)[: stop - start].ljust(stop - start, b".") + data[stop:]


def damage_file(original: Path, path: Path, draw: random.Random) -> None:
    """Bytes anywhere, its seal included."""
    path.write_bytes(mutate_bytes(original.read_bytes(), draw))


def alter_file(original: Path, path: Path, draw: random.Random) -> None:
    """What it says, sealed anew."""
    buffer = io.BytesIO()
    torch.save(make_checkpoint(), buffer)
    data = mutate_archive(buffer.getvalue(), draw)
    with path.open("wb") as file:
        writer = SealWriter(file.write)
        writer.write(data)
        try:
            writer.finish()
        except ValueError:  # no longer a zip file at its end
            path.write_bytes(data)


TARGETS: dict[
    str, tuple[Callable[[Path], None], Callable[[Path, Path, random.Random], None], Callable[[Path], None]]
] = {
    "bytes-folder": (write_folder, damage_folder, verify),
    "fitted-manifest": (write_folder, alter_manifest, read_folder),
    "fitted-small": (write_folder, alter_small, read_folder),
    "bytes-file": (lambda path: save_file(path, make_checkpoint()), damage_file, read_file),
    "fitted-file": (lambda path: save_file(path, make_checkpoint()), alter_file, read_file),
}


def fuzz(target: str, count: int, seed: int = 0) -> dict[str, float]:
    """Read ``count`` damaged checkpoints; anything but a CheckpointError comes out of here.

    Returns:
        How many were ``read`` and ``refused``, and by how many MiB the process ``growth``.
    """
    write, damage, read = TARGETS[target]
    draw = random.Random(f"{target}/{seed}")
    found = {"read": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as folder:
        original, path = Path(folder) / "original", Path(folder) / "damaged"
        write(original)
        read(original)
        before = 0.0
        for number in range(count):
            if original.is_dir():
                shutil.rmtree(path, ignore_errors=True)
                shutil.copytree(original, path)
            damage(original, path, draw)
            try:
                read(path)
                found["read"] += 1
            except CheckpointError:
                found["refused"] += 1
            except BaseException:
                shutil.copytree(folder, f"fuzz-{target}-{number}", dirs_exist_ok=True)
                raise
            if number == min(50, count // 2):
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {**found, "growth": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before}


def main() -> None:
    """Prints one line a target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="damaged checkpoints for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS, action="append")
    options = parser.parse_args()
    for target in options.target or TARGETS:
        result = fuzz(target, options.count, options.seed)
        print(f"{target:16}  read {result['read']:6.0f}  refused {result['refused']:6.0f}  +{result['growth']:.0f} MiB")


if __name__ == "__main__":
    main()
