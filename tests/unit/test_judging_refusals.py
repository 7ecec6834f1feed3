"""What cannot be judged is refused by name, and what is matched is matched by name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_pfc.deploy.embedded_files import write_embeddings
from lightning_pfc.evaluation import EvaluationSettings, Evaluator
from lightning_pfc.evaluation.identification import rank_among_distractors, search
from lightning_pfc.evaluation.one_shot import one_shot
from lightning_pfc.evaluation.pairs import read_pairs
from lightning_pfc.evaluation.protocol_config import check_protocol
from lightning_pfc.metrics.functional import fold_of_pair, kfold_tar_at_far

ROWS = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) // 4


def evaluator(**words: Any) -> Evaluator:
    return Evaluator(None, EvaluationSettings(**words))


def values(result: Any) -> dict[str, float]:
    return {m.name: m.value for m in result.measurements}


def saved(path: Path, rows: torch.Tensor, **arrays: Any) -> str:
    np.savez(path, emb=rows.numpy(), **arrays)
    return str(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_shot_counts_no_hit_that_has_no_score(bad: float) -> None:
    rows = ROWS.clone()
    rows[7, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinity in row 7"):
        one_shot(rows, LABELS)


def test_one_shot_knows_no_length() -> None:
    usual = one_shot(ROWS, LABELS)
    assert one_shot(ROWS * 2.0**-100, LABELS) == usual
    assert one_shot(ROWS.double() * 2.0**-300, LABELS) == usual
    with pytest.raises(ValueError, match="draws=0"):
        one_shot(ROWS, LABELS, draws=0)


def test_val_at_far_takes_the_folds_of_the_pairs() -> None:
    generator = torch.Generator().manual_seed(1)
    same = torch.arange(600) % 2 == 0
    distances = torch.rand(600, generator=generator) + torch.where(same, 0.0, 0.7)
    fold = fold_of_pair(600, 5)
    expected = kfold_tar_at_far(distances, same, 0.02, num_folds=5)
    order = same.int().argsort(stable=True, descending=True)  # all of one identity first, as held-out sets list them
    found = kfold_tar_at_far(distances[order], same[order], 0.02, num_folds=5, fold=fold[order])
    assert found.tar == pytest.approx(expected.tar, abs=1e-15)
    assert torch.equal(found.fold_threshold, expected.fold_threshold)
    aside = torch.cat([distances, torch.zeros(50)]), torch.cat([same, torch.zeros(50, dtype=torch.bool)])
    left_out = kfold_tar_at_far(*aside, 0.02, num_folds=5, fold=torch.cat([fold, torch.full((50,), -1)]))
    assert left_out.tar == pytest.approx(expected.tar, abs=1e-15)


def test_two_embedded_folders_are_matched_by_the_names_of_their_identities(tmp_path: Path) -> None:
    rows = torch.eye(4).numpy()
    gallery, probes = tmp_path / "gallery.npz", tmp_path / "probes.npz"
    known, sought = np.array(["ann", "bob", "eve"]), np.array(["bob", "eve", "joe"])  # one number apart
    write_embeddings(gallery, rows[:3], np.arange(3), [f"{n}/0.jpg" for n in known], known)
    looks = rows[[1, 1, 0, 3]]  # bob twice, eve as ann, a stranger
    write_embeddings(
        probes, looks, np.array([0, 0, 1, 2]), ["bob/1.jpg", "bob/2.jpg", "eve/1.jpg", "joe/1.jpg"], sought
    )
    protocol = {"type": "identification", "gallery": str(gallery), "probes": str(probes)}
    result = evaluator(ranks=(1,), fpirs=(1.0,)).run("i", protocol)
    assert values(result)["rank-1"] == pytest.approx(2 / 3)
    assert "3 probes with a mate and 1 without" in result.description


def test_a_folder_above_the_identities_is_no_identity(tmp_path: Path) -> None:
    names = np.array([f"set/{label}/{n}.jpg" for n, label in enumerate(LABELS.tolist())])
    gallery = saved(tmp_path / "g.npz", ROWS[::4], names=names[::4])
    probes = saved(tmp_path / "p.npz", ROWS[1::4], names=names[1::4])
    by_label = saved(tmp_path / "gl.npz", ROWS[::4], label=LABELS[::4].numpy())
    also = saved(tmp_path / "pl.npz", ROWS[1::4], label=LABELS[1::4].numpy())
    found = [
        values(evaluator(ranks=(1, 3)).run("i", {"type": "identification", "gallery": g, "probes": p}))
        for g, p in ((gallery, probes), (by_label, also))
    ]
    assert found[0] == found[1]
    assert found[0]["rank-1"] < 1
    days = np.array([f"day{n % 2}/{n}" for n in range(40)])  # says nothing of who it is
    dated = saved(tmp_path / "d.npz", ROWS[::4], label=LABELS[::4].numpy(), names=days[::4])
    again = evaluator(ranks=(1, 3)).run("i", {"type": "identification", "gallery": dated, "probes": also})
    assert values(again) == found[1]


@pytest.mark.parametrize(
    ("protocol", "words", "says"),
    [
        ({"type": "identification", "gallery": "a.npz", "probes": "far.npz"}, {}, "not one of 40 probes"),
        ({"type": "identification", "gallery": "one.npz", "probes": "one.npz"}, {}, "show one identity"),
        ({"type": "open_set", "path": "one.npz"}, {}, "show one identity"),
        ({"type": "open_set", "path": "apart.npz"}, {}, "no identity of .* has two images"),
        ({"type": "open_set", "path": "none.npz"}, {}, "no identity of .* has two images"),
        ({"type": "all_pairs", "path": "a.npz"}, {"fars": (1e-6,)}, "measured nothing: .* cannot resolve FAR 1e-6"),
        ({"type": "all_pairs", "path": "a.npz"}, {"fars": ()}, "measured nothing"),
        ({"type": "one_shot", "path": "a.npz"}, {"ranks": (10, 99)}, r"settings.ranks \(10, 99\)"),
        ({"type": "identification", "gallery": "a.npz", "probes": "wide.npz"}, {}, r"probes \(40, 16\), gallery"),
        (
            {"type": "identification", "gallery": "a.npz", "probes": "a.npz", "distractors": "wide.npz"},
            {},
            r"distractors \(40, 16\)",
        ),
        ({"type": "megaface", "probes": "a.npz", "distractors": "wide.npz"}, {}, r"distractors \(40, 16\)"),
    ],
)
def test_no_answer_without_a_question(
    tmp_path: Path, protocol: dict[str, Any], words: dict[str, Any], says: str
) -> None:
    for name, rows, label in (
        ("a", ROWS, LABELS),
        ("far", ROWS, LABELS + 100),
        ("one", ROWS, torch.zeros(40, dtype=torch.int64)),
        ("apart", ROWS, torch.arange(40)),
        ("none", ROWS[:0], LABELS[:0]),
        ("wide", torch.cat([ROWS, ROWS], 1), LABELS),
    ):
        saved(tmp_path / f"{name}.npz", rows, label=label.numpy())
    where = {key: str(tmp_path / value) if value.endswith(".npz") else value for key, value in protocol.items()}
    with pytest.raises(ValueError, match=says):
        evaluator(**words).run("mine", where)


def test_a_rate_that_is_left_out_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", ROWS, label=LABELS.numpy())
    result = evaluator(fars=(0.1, 1e-3, 1e-5)).run("a", {"type": "all_pairs", "path": path})
    assert set(values(result)) == {"tar@far=1e-1"}
    assert result.description.endswith("; 720 of them cannot resolve FAR 1e-3, 1e-5")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("fars", [0.0], "fars .*=0.0"),
        ("fars", [2], "fars .*=2"),
        ("fars", 0.1, r"fars must be a list of numbers, as in fars=\[0.1\]"),
        ("fars", ["x"], r"fars=\['x'\]\): fars must be a list of numbers\."),
        ("fpirs", [0], "fpirs=0"),
        ("fpirs", "0.1", r"fpirs='0.1'\): fpirs must be a list of numbers\."),
        ("ranks", [0], "ranks holds 0"),
        ("ranks", [1, 1.5], "ranks must be a list of whole numbers"),
        ("ranks", 5, r"ranks must be a list of whole numbers, as in ranks=\[5\]"),
        ("level", 1.0, "settings.level=1.0"),
        ("batch_size", 0, "settings.batch_size=0"),
        ("num_workers", -1, "settings.num_workers=-1"),
        ("max_pixels", 0, "settings.max_pixels=0"),
    ],
)
def test_settings_are_refused_before_anything_is_measured(name: str, value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        EvaluationSettings(**{name: value})


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"type": "all_pairs", "block": "x"}, "protocols.mine.block='x': block must be a whole number"),
        ({"type": "all_pairs", "block": 0}, "protocols.mine.block=0 must be at least 1"),
        ({"type": "one_shot", "draws": -3}, "protocols.mine.draws=-3 must be at least 1"),
        ({"type": "one_shot", "draws": "x"}, "protocols.mine.draws='x'"),
        ({"type": "groups", "of": 3}, "protocols.mine.of=3: of must be a mapping from texts to values"),
        ({"type": "groups", "of": {}, "far": 0}, "protocols.mine.far=0.0"),
        ({"type": "ijb", "root": "x", "subset": "ijba"}, "subset must be one of 'ijbb', 'ijbc'"),
        ({"type": "ijb", "root": "x", "detector": "no"}, "detector must be True or False"),
        ({"type": ["pairs"]}, r"has type \['pairs'\]"),
    ],
)
def test_protocols_are_refused_before_anything_is_measured(words: dict[str, Any], says: str) -> None:
    if words["type"] in ("all_pairs", "one_shot"):
        words = {**words, "path": "a.npz"}
    with pytest.raises(ValueError, match=says):
        check_protocol("mine", words)


def test_searches_refuse_two_widths() -> None:
    wide = torch.cat([ROWS, ROWS], 1)
    with pytest.raises(ValueError, match="several widths"):
        search(ROWS, LABELS, wide, LABELS)
    with pytest.raises(ValueError, match="several widths"):
        rank_among_distractors(ROWS, LABELS, wide)


def test_a_list_that_was_cut_short_is_told(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    lines = ["2\t2", *["ann\t1\t2", "bob\t1\t2", "ann\t1\tbob\t1", "ann\t2\tbob\t2"] * 2]
    path.write_text("\n".join(lines))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_pairs(path)[0]) == 8
    path.write_text("\n".join(lines[:-1]))
    with pytest.warns(UserWarning, match="holds 7 pairs, and its first line says 8"):
        assert len(read_pairs(path)[0]) == 7
