"""Compare every field of the published recipes with their sources.

``python recipes/benchmarks/parity/compare.py --sources CLONES`` reads clones of the sources (folders ``OWNER+NAME``),
writes what they say to ``tests/golden/recipe_sources.csv``, which a test compares the recipes with, and the table to
``docs/parity.md``. Without ``--sources`` it takes what the CSV says. Exit status 1 if a field differs that is not meant
to (``recipes/benchmarks/parity/meant.yaml``).
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig

from lightning_pfc.config import compose
from lightning_pfc.config_words import config_dir

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "recipe_sources.csv"
MEANT = Path(__file__).with_name("meant.yaml")
GROUPS = ("insightface", "plsc", "oneflow", "mxnet", "other")
_HEAD = """# Recipes beside their sources

Written by `python recipes/benchmarks/parity/compare.py --sources CLONES`, which reads the files of each source and
compares every field that both have. A test does the same with what the sources said
(`tests/golden/recipe_sources.csv`). "Equal" counts fields; what differs is meant, and says why.

| recipe | label | equal | differs: source, here, reason |
| --- | --- | --- | --- |
"""


class Field(NamedTuple):
    """One field of a recipe."""

    name: str
    source: Any
    here: Any
    reason: str | None

    @property
    def equal(self) -> bool:
        """Whether both say the same; whole and other numbers are numbers."""
        return bool(self.source == self.here)


def recipes() -> list[str]:
    """All published recipes, as ``GROUP/NAME``."""
    folder = config_dir() / "experiment"
    return sorted(f"{group}/{path.stem}" for group in GROUPS for path in (folder / group).glob("*.yaml"))


def here(config: DictConfig) -> dict[str, Any]:
    """What a composed recipe says, by the names of fields that sources are read under."""
    trainer, loss, optimizer, schedule = config.trainer, config.loss, config.optimizer, config.scheduler
    batch = config.data.batch_size * trainer.devices * trainer.num_nodes
    milestones = list(schedule.get("milestones", ()))
    return {
        "loss": loss.name.lower(),
        "margin": loss.get("margin"),
        "scale": loss.get("scale"),
        "filter": loss.get("interclass_filter"),
        "h": loss.get("h"),
        "t_alpha": loss.get("momentum"),
        "share": loss.get("share"),
        "start": loss.get("start"),
        "lifetime": loss.get("lifetime"),
        "network": config.backbone.name,
        "dropout": config.backbone.options.get("drop_rate", 0.0),
        "drop_path": config.backbone.options.get("drop_path_rate"),
        "embedding": config.backbone.embedding_dim,
        "rate": config.head.sample_rate,
        "optimizer": optimizer.name.lower(),
        "lr": optimizer.lr,
        "momentum": optimizer.get("momentum"),
        "weight_decay": optimizer.weight_decay,
        "scheduler": schedule.name,
        "milestones": milestones,
        "milestone_images": [round(each * config.recipe.num_images, -5) for each in milestones],
        "warmup": schedule.warmup_epochs,
        "batch": config.data.batch_size,
        "gpus": trainer.devices * trainer.num_nodes,
        "total": batch * trainer.accumulate_grad_batches,
        "accumulate": trainer.accumulate_grad_batches,
        "epochs": trainer.max_epochs,
        "steps": trainer.max_steps,
        "precision": trainer.precision,
        "clip": trainer.gradient_clip_val,
        "seed": config.seed,
        "augment": config.data.augment,
        "classes": config.recipe.num_classes,
        "images": config.recipe.num_images,
    }


def compared(
    recipe: str, config: DictConfig, source: dict[str, Any], meant: dict[str, dict[str, str]]
) -> Iterator[Field]:
    """Each field that the source has, beside that of the composed recipe."""
    ours = here(config)
    group = recipe.partition("/")[0]
    reasons = {**meant.get(group, {}), **meant.get(recipe, {})}
    for name, value in source.items():
        if name == "milestone_images":
            value = [round(each, -5) for each in value]
        if value is not None:
            yield Field(name, value, ours[name], reasons.get(name))


def read_golden() -> dict[str, dict[str, Any]]:
    """What the sources said when they were read last, by recipe and field."""
    found: dict[str, dict[str, Any]] = {}
    with GOLDEN.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["recipe"], {})[row["field"]] = json.loads(row["value"])
    return found


def meant_differences() -> dict[str, dict[str, str]]:
    """Why a field of a recipe, or of a group of them, differs from its source."""
    content: dict[str, dict[str, str]] = yaml.safe_load(MEANT.read_text(encoding="utf-8"))
    return content


def _read_sources(folder: Path) -> dict[str, dict[str, Any]]:
    from sources import Sources, read  # beside this file

    clones = Sources(folder)
    found = {recipe: read(clones, recipe) for recipe in recipes()}
    with GOLDEN.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("recipe", "field", "value"))
        for recipe, fields in found.items():
            table.writerows((recipe, name, json.dumps(value)) for name, value in (fields or {}).items())
    return {recipe: fields for recipe, fields in found.items() if fields is not None}


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, metavar="CLONES", help="a folder of clones, OWNER+NAME each")
    words = parser.parse_args()
    sources = _read_sources(words.sources) if words.sources else read_golden()
    meant = meant_differences()
    lines, wrong = [], 0
    for recipe in recipes():
        config = compose([f"experiment={recipe}"])
        fields = list(compared(recipe, config, sources.get(recipe, {}), meant))
        differ = [field for field in fields if not field.equal]
        for field in differ:
            if field.reason is None:
                wrong += 1
                print(f"{recipe}: {field.name} is {field.source} in the source and {field.here} here", file=sys.stderr)
        told = "; ".join(f"{f.name}: {f.source}, {f.here}, {f.reason}" for f in differ) or "-"
        equal = len(fields) - len(differ)
        lines.append(
            f"| `{recipe}` | {config.recipe.label} | {equal if fields else 'no file'} | {told if fields else '-'} |"
        )
    (ROOT / "docs" / "parity.md").write_text(_HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    print(
        f"{len(lines)} recipes, {len(sources)} with a file of their source, {wrong} fields that differ and should not"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
