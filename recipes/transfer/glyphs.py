"""What fine-tuning gives, and what it forgets: a backbone of glyphs, shown what it never saw.

    python recipes/transfer/glyphs.py --from runs/glyphs --characters 1000 --epochs 4 --out rows.jsonl
    python recipes/transfer/glyphs.py --from runs/glyphs --people lfw_aligned112/ --epochs 16 --out rows.jsonl
    python recipes/transfer/glyphs.py --table rows.jsonl

The new task: characters of the backbone's test split, drawn in the design that it never saw, each of five pictures
turned, moved and noisy in its own way, and five others to be recognised; or the people of a folder that have five
pictures or more, small and grey, of each two to be recognised and the others to learn from. Recognised by the nearest
mean of those learned from. The first task: characters that the backbone was validated on, each recognised among all by
its picture in another design.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from lightning_pfc import PartialFCModule
from lightning_pfc.commands.training import train
from lightning_pfc.data import Glyphs
from lightning_pfc.data.camera import to_float
from lightning_pfc.data.verification import VerificationSet
from lightning_pfc.runs.own_checkpoint import own_checkpoint

MEANS = "head.init=class_means"
WAYS: dict[str, list[str] | None] = {
    "untouched": None,
    "from nothing": [],
    "all trained": ["FROM", MEANS],
    "finetune=frozen": ["FROM", MEANS, "finetune=frozen"],
    "finetune=head_first": ["FROM", MEANS, "finetune=head_first"],
    "finetune=last_blocks": ["FROM", MEANS, "finetune=last_blocks", "finetune.trained_blocks=1"],
    "finetune=layer_decay": ["FROM", MEANS, "finetune=layer_decay", "optimizer.layer_decay=0.3"],
    "finetune=l2_sp": ["FROM", MEANS, "finetune=l2_sp", "finetune.l2_sp=1.0"],
    "finetune=distill": ["FROM", MEANS, "finetune=distill"],
    "finetune=lora": ["FROM", MEANS, "finetune=lora"],
}
OF_TRANSFORMERS = ("finetune=lora",)
PICTURES = 5
HELD = 2  # of a person
SIDE = 32
CALLED = {"characters": "characters", "faces": "people"}


def distorted(picture: Tensor, generator: torch.Generator) -> Tensor:
    """One (32, 32) float picture in [0, 1] turned, sheared, moved and with noise."""
    angle, shear, x, y = ((torch.rand(4, generator=generator) * 2 - 1) * torch.tensor([0.5, 0.3, 0.2, 0.2])).tolist()
    turn = torch.tensor([[np.cos(angle), -np.sin(angle) + shear, x], [np.sin(angle), np.cos(angle), y]])
    grid = F.affine_grid(turn[None].float() * 1.1, [1, 1, *picture.shape], align_corners=False)
    moved = F.grid_sample(picture[None, None] - 1, grid, align_corners=False)[0, 0] + 1  # paper is white
    return (moved + 0.15 * torch.randn(picture.shape, generator=generator)).clamp(0, 1)


def new_characters(folder: Path, characters: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures to learn from, in a folder for each character; those to be recognised, and their (n,) classes."""
    held = Glyphs(progress=False).open().test["heldout"]
    assert isinstance(held, VerificationSet)
    generator = torch.Generator().manual_seed(seed)
    wanted = held.pairs.first[held.pairs.same].unique()  # of each genuine pair one picture is of the held-out design
    order = torch.as_tensor(wanted)[torch.randperm(len(wanted), generator=generator)]
    seen: dict[int, int] = {}
    for index in order.tolist():
        seen.setdefault(int(held.identity[index]), index)
    shown, labels = [], []
    for label, (code, index) in enumerate(sorted(list(seen.items())[:characters])):
        picture = held.images.fetch(np.array([index]))[0, 0].float() / 255
        place = folder / f"{code:06x}"
        place.mkdir(parents=True)
        for number in range(2 * PICTURES):
            made = (distorted(picture, generator) * 255).round().to(torch.uint8)
            if number < PICTURES:
                Image.fromarray(made.numpy()).save(place / f"{number}.png")
            else:
                shown.append(made[None])
                labels.append(label)
    return torch.stack(shown), torch.tensor(labels)


def new_people(folder: Path, people: Path, seed: int) -> tuple[Tensor, Tensor]:
    """The same of the people in ``people``, a folder for each, who have as many pictures."""
    generator = torch.Generator().manual_seed(seed)
    shown, labels = [], []
    found = {person: sorted(person.glob("*.jpg")) for person in sorted(people.iterdir()) if person.is_dir()}
    enough = {person: paths for person, paths in found.items() if len(paths) >= PICTURES}
    for label, (person, paths) in enumerate(enough.items()):
        (folder / person.name).mkdir(parents=True)
        for place, number in enumerate(torch.randperm(len(paths), generator=generator).tolist()):
            small = Image.open(paths[number]).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            if place < HELD:
                shown.append(torch.from_numpy(np.array(small))[None])
                labels.append(label)
            else:
                small.save(folder / person.name / f"{place}.png")
    return torch.stack(shown), torch.tensor(labels)


def embedded(module: nn.Module, pictures: Tensor) -> Tensor:
    """(n, D) unit embeddings of (n, 1, 32, 32) uint8 pictures."""
    module.eval()
    with torch.no_grad():
        return torch.cat([F.normalize(module(to_float(part))) for part in torch.split(pictures, 500)])


def learned(folder: Path) -> tuple[Tensor, Tensor]:
    """The pictures of the folder, and their classes."""
    paths = sorted(folder.rglob("*.png"))
    names = sorted({path.parent.name for path in paths})
    pictures = torch.stack([torch.from_numpy(np.array(Image.open(path)))[None] for path in paths])
    return pictures, torch.tensor([names.index(path.parent.name) for path in paths])


def on_new(module: nn.Module, folder: Path, shown: Tensor, labels: Tensor) -> float:
    """Share of the pictures whose nearest mean is that of their character."""
    known, classes = learned(folder)
    sums = torch.zeros(int(classes.max()) + 1, embedded(module, known[:2]).shape[1])
    means = F.normalize(sums.index_add_(0, classes, embedded(module, known)))
    return float(((embedded(module, shown) @ means.T).argmax(1) == labels).float().mean())


def on_first(module: nn.Module) -> float:
    """Share of validation characters whose picture in one design is nearest to that in another."""
    validation = Glyphs(progress=False).open().validation["val"]
    identity = validation.identity  # type: ignore[union-attr]
    order = torch.argsort(identity, stable=True)
    first = torch.cat([torch.tensor([True]), identity[order][1:] != identity[order][:-1]])
    gallery = order[first]
    probes = order[torch.roll(first, 1)]  # the one behind each first
    pictures = embedded(module, validation.images.fetch(np.arange(len(identity))))
    found = identity[gallery][(pictures[probes] @ pictures[gallery].T).argmax(1)]
    return float((found == identity[probes]).float().mean())


def backbone_words(source: Path) -> list[str]:
    """What the run said of its backbone: another one begins with the same."""
    said = OmegaConf.to_container(OmegaConf.load(source / "overrides.yaml"))
    words = map(str, said) if isinstance(said, list) else ()
    return [word for word in words if word.lstrip("+").startswith("backbone")]


def measured(source: Path, seed: int, options: argparse.Namespace, ways: list[str]) -> Iterator[dict[str, object]]:
    """A row for each way."""
    if not ways:
        return
    kind = "faces" if options.people else "characters"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "pictures"
        if options.people:
            shown, labels = new_people(folder, options.people, seed)
        else:
            shown, labels = new_characters(folder, options.characters, seed)
        for way in ways:
            started, words = time.perf_counter(), WAYS[way]
            checkpoint = own_checkpoint(source)
            if words is not None:
                words = [*backbone_words(source), *words]
                run = Path(name) / f"run{list(WAYS).index(way)}"
                typed = [f"init_from={source}" if word == "FROM" else word for word in words]
                train("experiment=none", "data=folder", f"data.source.path={folder}", f"data.source.image_size={SIDE}",
                      "data.source.channels=1", "data.source.task=closed", "data.source.test_share=0", "choices=none",
                      f"data.kind={kind}", "data.batch_size=64", f"trainer.max_epochs={options.epochs}", "plots=false",
                      "test=false", "logger=none", "trainer.enable_progress_bar=false", f"seed={seed}", "loss.scale=16",
                      "trainer.enable_model_summary=false", f"output_dir={run}", *typed)  # fmt: skip
                checkpoint = own_checkpoint(run)
            module = PartialFCModule.load_from_checkpoint(checkpoint)
            yield {
                "source": source.name, "kind": kind, "way": way, "seed": seed, "classes": len(labels.unique()),
                "pictures": sum(1 for _ in folder.rglob("*.png")), "epochs": options.epochs,
                "new": on_new(module, folder, shown, labels), "first": on_first(module),
                "seconds": round(time.perf_counter() - started, 1),
            }  # fmt: skip


def made(options: argparse.Namespace, seed: int, way: str) -> bool:
    """Whether the file has that row, of a command that was ended."""
    if options.out is None or not options.out.exists():
        return False
    wanted = {"source": options.source.name, "way": way, "seed": seed, "epochs": options.epochs}
    wanted |= {"kind": "faces"} if options.people else {"kind": "characters", "classes": options.characters}
    rows = map(json.loads, options.out.read_text().splitlines())
    return any(wanted.items() <= row.items() for row in rows)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: of each run, new task and way how many seeds, and the least and the most in percent on both tasks."""
    lines = ["| | seeds | new task | first task |", "| --- | --- | --- | --- |"]
    runs: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        runs.setdefault((row["source"], f"{row['classes']} {CALLED[row['kind']]}", row["way"]), []).append(row)
    for names, those in runs.items():
        cells = [[100 * row[task] for row in those] for task in ("new", "first")]
        spread = " | ".join(f"{min(each):.1f} .. {max(each):.1f}" for each in cells)
        lines.append(f"| {', '.join(names)} | {len(those)} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, a line of JSON a row, among what the runs say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, help="a run of pfc-train on glyphs")
    parser.add_argument("--characters", type=int, default=1000, help="of the new task (default 1000)")
    parser.add_argument("--people", type=Path, metavar="FOLDER", help="their pictures, a folder each, in place of it")
    parser.add_argument("--epochs", type=int, default=8, help="of fine-tuning (default 8)")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), help="default: all that its backbone can take")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="rows are added to it, a line of JSON each; those it has are not made"
    )
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="print the table of such a file, and do nothing else"
    )
    options = parser.parse_args()
    if options.table is not None:
        print(table([json.loads(line) for line in options.table.read_text().splitlines()]))
        return
    if options.source is None:
        parser.error("--from names the run that is tuned")
    transformer = any("vit" in word for word in backbone_words(options.source))
    ways = options.ways or [way for way in WAYS if transformer or way not in OF_TRANSFORMERS]
    for seed in range(options.seeds):
        for row in measured(options.source, seed, options, [way for way in ways if not made(options, seed, way)]):
            print(json.dumps(row), flush=True)
            if options.out is not None:
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
