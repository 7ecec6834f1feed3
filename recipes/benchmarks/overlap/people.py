"""What ``pfc-data overlap`` finds of a folder of people that was cut in two, and what it said it would.

    python recipes/benchmarks/overlap/people.py PEOPLE --model sface.onnx --pixels --thresholds 0.363 0.5

PEOPLE/NAME/IMAGE. Of 400 people with two pictures or more, every other picture goes to the second set, under another
name; of people with one picture, 400 are in the first set and 400 others in the second; 60 of the first also lie in the
second, made smaller and compressed again. They are compared once, at the lowest threshold. Printed is for each one how
many pairs of people are right (of 460, where there are as many) and how many are wrong, for the lowest how many the
command said there would be by chance; of the copies how many were found, and how many other pairs of pictures. SFace
takes pixels as they are: ``--pixels`` writes mean 0 and standard deviation 1 into the metadata of a copy of its file,
as pfc-export does, or nothing would be told apart.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

from lightning_pfc.data.preprocessing import METADATA_KEY, Preprocessing

SHARED, ALONE, COPIES, MOST = 400, 400, 60, 6


def cut_in_two(people: Path, work: Path) -> set[tuple[str, str]]:
    """Write both sets; returns the pairs of names that are one person."""
    names = sorted(path.name for path in people.iterdir() if path.is_dir())
    pictures = {name: sorted(path for path in (people / name).iterdir() if path.is_file()) for name in names}
    several = [name for name in names if len(pictures[name]) > 1][:SHARED]
    single = [name for name in names if len(pictures[name]) == 1][: 2 * ALONE]
    same = {(name, f"q{number:04d}") for number, name in enumerate(several)}
    for name, other in sorted(same):
        for place, picture in enumerate(pictures[name][:MOST]):
            copy(picture, work / ("b" if place % 2 else "a") / (other if place % 2 else name))
    for place, name in enumerate(single):
        copy(pictures[name][0], work / ("a" if place < ALONE else "b") / name)
    for name in single[:COPIES]:
        target = work / "b" / f"copy_{name}"
        target.mkdir(parents=True)
        with Image.open(pictures[name][0]) as image:
            image.resize((80, 80), Image.Resampling.BILINEAR).save(target / "x.jpg", quality=60)
        same.add((name, target.name))
    return same


def taking_pixels(model: Path, target: Path) -> Path:
    """A copy of an ONNX model whose metadata say that it takes 112 x 112 pixels of 0 to 255."""
    import onnx

    record = Preprocessing(size=(112, 112), mean=(0.0,), std=(1.0,))
    content = onnx.load(str(model))
    content.metadata_props.add(key=METADATA_KEY, value=json.dumps(record.to_config()))
    onnx.save(content, str(target))
    return target


def copy(picture: Path, folder: Path) -> None:
    """Copy a file into a folder that is made."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(picture, folder / picture.name)


def main() -> None:
    """Cut, compare, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pixels", action="store_true", help="the model is an ONNX file that takes pixels as they are")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.363, 0.5])
    parser.add_argument("--work", type=Path, default=Path("overlap_work"))
    options = parser.parse_args()
    if options.work.exists():
        raise SystemExit(f"--work={options.work} exists; name a new folder.")
    same = cut_in_two(options.people, options.work)
    if options.pixels:
        options.model = str(taking_pixels(Path(options.model), options.work / "model.onnx"))
    lowest = min(options.thresholds)
    rows, chance = compared(options.work, options.model, lowest)
    copies = {(name, other) for name, other in same if other.startswith("copy_")}
    pictures = {(row["identity_a"], row["identity_b"]) for row in rows if row["kind"] == "picture"}
    for threshold in sorted(options.thresholds):
        found = {
            (row["identity_a"], row["identity_b"])
            for row in rows
            if row["kind"] == "identity" and (row["how"] != "embedding" or float(row["score"]) >= threshold)
        }
        said = f", {chance} said" if threshold == lowest else ""
        print(f"{threshold}: {len(found & same)} of {len(same)} right, {len(found - same)} wrong{said}")
    print(f"{len(pictures & copies)} of {len(copies)} copies, {len(pictures - copies)} pairs of other pictures")


def compared(work: Path, model: str, threshold: float) -> tuple[list[dict[str, str]], str]:
    """The list of the command, and how many pairs it says there would be by chance."""
    target = work / "list.tsv"
    words = ["overlap", str(work / "a"), str(work / "b"), str(target), "--model", model, "--quiet", "--force"]
    command = [sys.executable, "-m", "lightning_pfc.commands.data", *words, "--threshold", str(threshold)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if not target.exists():  # it ends with 1 where something is in both
        raise SystemExit(answer.stderr)
    with target.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    [chance] = re.findall(r"pairs here about ([\d,]+)", answer.stdout) or ["none"]
    return rows, chance


if __name__ == "__main__":
    main()
