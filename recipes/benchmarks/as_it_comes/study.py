"""As it comes against two plain scripts and a grid, on many kinds of small sets, in equal processor time.

    python study.py sets/ --seeds 0 1 2 --share 0.25 --log results.jsonl          # contestants
    python study.py sets/ --sets characters --grid --log results.jsonl            # the grid, one seed
    python study.py --table --plot ahead.png --log results.jsonl

A line is added to the log after each run, and what it holds already is not run again. The default trains first, for a
``--share`` of the epochs that it chooses by itself; the others get the processor time that it took.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

import as_it_comes  # noqa: F401 - what it needs is imported once
import numpy as np
import torch
from draw import draw
from omegaconf import OmegaConf
from one_shot import one_shot

from lightning_pfc.config import compose
from lightning_pfc.runs.choices import choose

PLAIN = ("plain_cross_entropy", "plain_arcface")
LOSSES = ("loss=arcface loss.scale=16", "loss=arcface loss.scale=32", "loss=cosface loss.scale=16", "loss=softmax")
AUGMENT = ("data.augment=none", "data.augment=flip", "data.augment=affine")
RATES = ("optimizer.lr=1e-3", "optimizer.lr=4e-3")


def grid() -> list[str]:
    """At most 16 points: losses by augmentations, and rates."""
    return [" ".join(pair) for pair in itertools.product(LOSSES, AUGMENT)] + [f"{LOSSES[0]} {rate}" for rate in RATES]


def run(contestant: str, place: Path, seed: int, seconds: float, words: list[str]) -> dict[str, Any]:
    """One training, in a process of its own, forked when all is imported."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.npz"
        work = importlib.import_module(contestant if contestant in PLAIN else "as_it_comes").main
        given = (place, seconds, seed, out) if contestant in PLAIN else (place, seed, out, words)
        child = multiprocessing.get_context("fork").Process(target=work, args=given)
        child.start()
        child.join()
        if child.exitcode:
            raise SystemExit(f"{contestant} {' '.join(words)} failed on {place}")
        found = np.load(out)
        more = json.loads(out.with_suffix(".json").read_text()) if contestant not in PLAIN else {"seconds": seconds}
        last = {"last_rank1": one_shot(found["last_emb"], found["last_label"])} if "last_emb" in found else {}
        return {"rank1": one_shot(found["emb"], found["label"]), **last, **more}


def epochs_of(place: Path, share: float) -> int:
    """A share of the epochs that would be chosen."""
    words = ["data=folder", f"data.source.path={place / 'train'}"]
    config = compose(words)
    choose(config, words)
    return max(2, round(share * OmegaConf.select(config, "trainer.max_epochs")))


def study(arguments: argparse.Namespace) -> None:
    """Whatever is asked for and not yet in the log."""
    for seed, name in itertools.product(arguments.seeds, arguments.sets or sorted(os.listdir(arguments.folder))):
        place = arguments.folder / name
        epochs = f"trainer.max_epochs={epochs_of(place, arguments.share)}"
        seconds = 0.0
        contestants = [("as_it_comes", ""), *((plain, "") for plain in arguments.scripts)]
        contestants += [("words", words) for words in (grid() if arguments.grid else arguments.words)]
        for contestant, words in contestants:
            key = {"set": name, "seed": seed, "share": arguments.share, "contestant": contestant, "words": words}
            known = [r for r in read(arguments.log) if key.items() <= r.items() and r["rules"] == arguments.rules[-1]]
            if not known:
                result = run(contestant, place, seed, seconds, [epochs, *words.split()])
                known = [{**key, "rules": arguments.rules[-1], **result}]
                with arguments.log.open("a") as log:
                    log.write(json.dumps(known[0]) + "\n")
            print(name, seed, contestant, words, f"{known[0]['rank1']:.1f} ({known[0]['seconds']:.0f} s)", flush=True)
            seconds = seconds or known[0]["seconds"]


def read(log: Path) -> list[dict[str, Any]]:
    """What was found so far."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def table(arguments: argparse.Namespace) -> None:
    """Markdown; a figure is the mean over seeds, with each seed behind it."""
    rows = latest([r for r in read(arguments.log) if r["share"] == arguments.share], arguments.rules)
    if arguments.plot:
        draw(rows, arguments.plot)
    print("| set | CPU s | as it comes | cross entropy | ArcFace | best of further points, seed 0 | short of it |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in sorted({r["set"] for r in rows}):
        own = [r for r in rows if r["set"] == name]
        own.sort(key=lambda r: r["seed"])
        cells = [shown([r["rank1"] for r in own if r["contestant"] == c]) for c in ("as_it_comes", *PLAIN)]
        points = [r for r in own if r["contestant"] == "words" and r["seed"] == 0]
        best = max(points, key=lambda r: r["rank1"], default=None)
        seconds = np.mean([r["seconds"] for r in own if r["contestant"] == "as_it_comes"])
        cells.append("" if best is None else f"{best['rank1']:.1f} of {len(points)}: `{best['words']}`")
        cells.append("" if best is None else short(best, own))
        print(f"| {name} | {seconds:.0f} | {' | '.join(cells)} |")


def latest(rows: list[dict[str, Any]], rules: list[str]) -> list[dict[str, Any]]:
    """Of each run the one with the last of these rules."""
    found = {}
    for row in sorted((r for r in rows if r["rules"] in rules), key=lambda r: rules.index(r["rules"])):
        found[row["set"], row["seed"], row["contestant"], row["words"]] = row
    return list(found.values())


def short(best: dict[str, Any], own: list[dict[str, Any]]) -> str:
    """By how much as it comes is behind a point of its seed; less than nothing where it is ahead."""
    alike = [r["rank1"] for r in own if r["contestant"] == "as_it_comes" and r["seed"] == best["seed"]]
    return f"{best['rank1'] - alike[0]:.1f}" if alike else ""


def shown(values: list[float]) -> str:
    """The mean and, of several, all."""
    text = ", ".join(f"{value:.1f}" for value in values)
    return f"{np.mean(values):.1f} ({text})" if len(values) > 1 else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--sets", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the epochs that are chosen")
    parser.add_argument("--scripts", nargs="*", choices=PLAIN, default=PLAIN, help="beside it; none: --scripts alone")
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--words", nargs="*", default=[], help="further points, each the words of a run")
    parser.add_argument(
        "--rules",
        nargs="+",
        default=[""],
        help="name of this version's, kept in the log; --table: of each run the last",
    )
    parser.add_argument("--log", type=Path, default=Path("results.jsonl"))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plot", type=Path, help="with --table: where the differences are drawn")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table(arguments) if arguments.table else study(arguments)


if __name__ == "__main__":
    main()
