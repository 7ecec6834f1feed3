"""The commands behind docs/claims.md: every setting composes, the data are spoiled as said, the intervals are right."""

from __future__ import annotations

import importlib
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lightning_pfc.config import compose

CLAIMS = Path(__file__).parents[2] / "recipes" / "benchmarks" / "claims"
NAMES = ("sampling", "equal_time", "noise", "long_tail", "bag_of_tricks", "confirm", "faces", "parallel")


@pytest.fixture
def claim(monkeypatch):
    monkeypatch.syspath_prepend(str(CLAIMS))
    yield importlib.import_module
    for name in [path.stem for path in CLAIMS.glob("*.py")]:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", NAMES[:-2])
def test_every_setting_composes(claim, name):
    module = claim(name)
    assert len({setting.name for setting in module.SETTINGS}) == len(module.SETTINGS)
    for setting in module.SETTINGS:
        words = [w for w in module.SETTING if "callbacks" not in w or "callbacks=ema" not in setting.overrides]
        compose([*words, *setting.overrides])


def test_faces_compose(claim):
    faces = claim("faces")
    for setting in faces.SETTINGS:
        assert compose([*faces.FACES, *setting.overrides, "data.source.path=x"]).data.source.test_share == 0.3


@pytest.mark.parametrize("name", NAMES)
def test_tables_and_pictures_of_made_up_results(claim, name, tmp_path, monkeypatch, capsys):
    module = claim(name)
    monkeypatch.setattr(claim("figures"), "IMAGES", tmp_path)
    fars = ("1e-2", "1e-3", "1e-4", "1e-5")
    keys = [
        f"{name}/{kind}tar@far={far}" for name in ("test", "heldout") for kind in ("", "all_pairs_") for far in fars
    ]
    keys += ["test/accuracy", "heldout/accuracy", "cpu_seconds", "memory_mb"]
    keys += ["top1/head", "top1/middle", "top1/tail", "top1/all", "rows_per_second"]
    epochs = [{"apcs": 0.5, "mics": 0.4, "amncs/noise": 0.1 * i, "amncs/hard": 0.2} for i in range(3)]
    records = [
        {"setting": setting.name, "seed": seed, "epochs": epochs, **dict.fromkeys(keys, 0.5 + 0.1 * seed)}
        for setting in module.SETTINGS
        for seed in (0, 1, 2)
    ]
    module.report(records)
    shown = capsys.readouterr().out
    assert "±" in shown
    assert list(tmp_path.glob("claims_*.png"))
    module.report(records[:1])  # an interrupted claim shows what there is


def test_runs_are_kept_and_only_the_missing_ones_done(claim, tmp_path, monkeypatch, capsys):
    runs = claim("runs")
    monkeypatch.setattr(claim("figures"), "IMAGES", Path("of the docs"))
    results = tmp_path / "x.jsonl"
    made = {"setting": "a", "seed": 0, "value": 1.0, "overrides": ["trainer.max_epochs=1"]}
    results.write_text(json.dumps(made) + "\n")
    asked: list[list[str]] = []

    def record(command, **how):
        assert how["env"]["OMP_NUM_THREADS"] == "1"
        asked.append(command)
        return SimpleNamespace(returncode=int(command[-4:-2] == ["b", "1"]))

    monkeypatch.setattr(runs.subprocess, "run", record)
    words = ["--results", str(results), "--launcher", "nice -n 5", "--jobs", "2", "trainer.max_epochs=1"]
    monkeypatch.setattr(sys, "argv", ["x.py", *words])
    settings = [runs.Setting("a"), runs.Setting("b", ("x=y",))]
    with pytest.raises(SystemExit, match="1"):  # a run failed
        runs.main("x", settings, lambda setting, seed: {}, lambda records: None, seeds=(0, 1))
    assert [command[:3] for command in asked] == [["nice", "-n", "5"]] * 3
    assert all(command[-2:] == ["--", "trainer.max_epochs=1"] for command in asked)
    assert sorted(command[-4:-2] for command in asked) == [["a", "1"], ["b", "0"], ["b", "1"]]
    assert "b, seed 1: FAILED" in "".join(capsys.readouterr())
    monkeypatch.setattr(sys, "argv", ["x.py", "--results", str(results), "--only", "b", "0", "--", "z=1"])
    with pytest.raises(SystemExit):  # runs of other words are not mixed into a table
        runs.main("x", settings, lambda setting, seed: {}, lambda records: None)
    assert "another file with --results" in capsys.readouterr().err
    results.write_text("")
    runs.main("x", settings, lambda setting, seed: {"value": setting.overrides}, lambda records: None)
    found = {"claim": "x", "setting": "b", "seed": 0, "overrides": ["z=1"], "value": ["x=y", "z=1"]}
    assert runs.load(results) == [found]
    images = claim("figures").IMAGES  # a try-out draws no picture of the docs
    assert images == tmp_path


def test_intervals(claim):
    tables = claim("tables")
    mean, half = tables.interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert math.isnan(tables.interval([1.0])[1])
    records = [{"setting": s, "seed": i, "v": i + (s == "a")} for s in "ab" for i in range(3)]
    assert tables.paired(records, "a", "b", "v") == (1.0, 0.0)
    assert tables.interval([1.0, 2.0, 3.0], 1 - 0.05 / 6)[1] > 2 * half  # six differences at once


@pytest.mark.parametrize(
    ("mean", "half", "said"),
    [
        (-0.15, 0.5, "level"),
        (-0.15, 0.94, "undecided"),  # no difference was seen, and one of a point may be there
        (0.5, 2.0, "undecided"),
        (3.0, 1.0, "better"),
        (-3.0, 2.5, "worse, perhaps by less than that"),
        (0.5, 0.2, "level"),  # sure, and too small to matter
        (3.0, math.nan, "one seed"),
    ],
)
def test_level_needs_the_whole_interval(claim, mean, half, said):
    assert claim("tables").verdict(mean, half, 1.0) == said


@dataclass(frozen=True)
class Opened:
    labels: np.ndarray
    num_classes: int


def test_noise_is_what_it_says(claim):
    noise = claim("noise")
    labels = np.repeat(np.arange(300), 10)

    def spoiled(kind: str) -> Opened:
        data = SimpleNamespace(data=Opened(labels, 300), _data=None)
        others.append(noise.spoil(data, kind))
        return data._data

    others: list[np.ndarray] = []

    assert np.array_equal(spoiled("clean").labels, labels)
    flipped = spoiled("flip")
    assert flipped.num_classes == 300
    assert 0.37 < (flipped.labels != labels).mean() < 0.43
    split = spoiled("conflict")
    assert split.num_classes == 400
    assert len(np.unique(split.labels)) == 400
    changed = np.unique(labels[split.labels != labels])
    assert len(changed) == 100
    assert (split.labels[split.labels != labels] >= 300).all()
    other = others[-1]
    assert len(other) == 400
    assert (other >= 0).sum() == 200
    assert all(other[other[c]] == c for c in np.flatnonzero(other >= 0))


def test_the_tail_is_long(claim):
    long_tail = claim("long_tail")
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(1000), 3))
    rows, held, place = long_tail.zipf(labels, 1000)
    assert abs(len(rows) - 2000) < 20
    assert np.array_equal(labels[held], np.arange(1000))
    assert not np.isin(held, rows).any()
    counts = np.bincount(labels[rows], minlength=1000)[np.argsort(place)]
    assert counts[0] == counts.max() == min(200, counts[0])
    assert (np.diff(counts) <= 0).all()
    assert counts[-500:].max() == 1


def test_the_experiment_is_made_of_the_tricks_that_are_measured(claim):
    """Every word of ``experiment=bag_of_tricks`` is a step of the ladder."""
    ladder = claim("bag_of_tricks").SETTINGS
    config = compose(["experiment=bag_of_tricks"])
    average = next(setting for setting in ladder if setting.name.startswith("+ average"))
    step = compose([w for w in average.overrides if not w.startswith("~")])
    for part in ("loss", "optimizer", "scheduler"):
        assert config[part] == step[part]
    assert config.data.augment == step.data.augment
    assert config.callbacks.ema == step.callbacks.ema
