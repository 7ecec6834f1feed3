"""Thresholds: the rate of the definition, intervals that hold on other identities, and refusals."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_pfc.calibration.choose_identification import check_identification, choose_identification
from lightning_pfc.calibration.choose_verification import UnresolvedRateError, check, choose
from lightning_pfc.calibration.gathering import gather, some_of_each
from lightning_pfc.calibration.job import Calibrate, calibrate, write_thresholds
from lightning_pfc.calibration.material import Material
from lightning_pfc.calibration.pairs_above import pairs_above
from lightning_pfc.calibration.spread import Accepts, Draws, replicates, variance
from lightning_pfc.calibration.trials import AllPairs, ListedPairs, Searches, Trials
from lightning_pfc.commands.eval import evaluate
from lightning_pfc.data import Preprocessing
from lightning_pfc.data.errors import BrokenImageError, FormatError
from lightning_pfc.data.formats import DecodedImages
from lightning_pfc.data.images import ArrayImages
from lightning_pfc.data.verification import VerificationSet
from lightning_pfc.deploy import Recogniser
from lightning_pfc.deploy.export import export_run
from lightning_pfc.evaluation import EvaluationSettings, Evaluator
from lightning_pfc.evaluation.run_pictures import held_out
from lightning_pfc.runs.errors import ExportError
from lightning_pfc.runs.run_folder import Run, read_thresholds
from lightning_pfc.runs.thresholds import Threshold, Thresholds

QUICK = Draws(replicates=300)


def people(
    identities: int, pictures: int = 3, *, seed: int = 0, width: int = 12, likeness: float = 0.0, noise: float = 0.5
) -> Material:
    """Embeddings around a center for each identity; with ``likeness`` some centers look like many others."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((identities, width))
    centers += likeness * rng.exponential(1.0, (identities, 1))  # the same direction for all sets
    rows = centers.repeat(pictures, 0) + noise * rng.standard_normal((identities * pictures, width))
    labels = np.arange(identities).repeat(pictures)
    return Material("people", embeddings=torch.from_numpy(rows).float(), labels=torch.from_numpy(labels))


def all_scores(material: Material) -> tuple[Any, Any]:
    assert material.embeddings is not None
    assert material.labels is not None
    unit = torch.nn.functional.normalize(material.embeddings.double())
    a, b = np.triu_indices(len(unit), 1)
    return (unit @ unit.T)[a, b], (material.labels[a] == material.labels[b])


def as_list(material: Material, *, named: bool = True) -> Material:
    scores, same = all_scores(material)
    assert material.labels is not None
    a, b = np.triu_indices(len(material.labels), 1)
    sides = (material.labels[a], material.labels[b]) if named else None
    return Material("list", scores=scores, same=same, sides=sides)


# --- the value --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("far", [1e-2, 1e-3])
def test_the_rate_is_that_of_the_definition(far: float) -> None:
    material = people(120)
    scores, same = all_scores(material)
    found = choose(material, far, flip="none", model="m", draws=QUICK)
    accepted = int((scores[~same] > found.value + 1e-12).sum())
    assert accepted == found.false_accepts == int(far * int((~same).sum()))
    assert found.trials == int((~same).sum())
    assert found.accept_rate == pytest.approx(float((scores[same] > found.value).double().mean()))
    assert found.identities == 120
    assert found.value_interval is not None
    assert found.value_interval[0] < found.value < found.value_interval[1]
    assert found.interval[0] < far < found.interval[1]
    listed = choose(as_list(material), far, flip="none", model="m", draws=QUICK)
    assert listed.value == pytest.approx(found.value, abs=1e-12)
    assert listed.interval == pytest.approx(found.interval, rel=1e-6)
    assert listed.accept_rate == pytest.approx(found.accept_rate)


def test_pairs_above_are_all_of_them() -> None:
    material = people(30)
    scores, same = all_scores(material)
    value = float(scores.sort().values[-200])
    assert material.embeddings is not None
    a, b = pairs_above(material.embeddings, value)
    found = set(zip(a.tolist(), b.tolist(), strict=True))
    pairs = list(combinations(range(90), 2))
    assert found == {pairs[i] for i in (scores > value).nonzero().squeeze(1).tolist()}
    a, b = pairs_above(material.embeddings, value, material.labels)
    genuine = {pairs[i] for i in ((scores > value) & same).nonzero().squeeze(1).tolist()}
    assert set(zip(a.tolist(), b.tolist(), strict=True)) == genuine


def test_some_of_each_identity() -> None:
    labels = torch.tensor([3, 1, 3, 3, 1, 3, 3, 2, 3, 3])
    kept = some_of_each(labels, 2)
    assert torch.bincount(labels[kept]).tolist() == [0, 2, 1, 2]
    assert kept.tolist() == sorted(kept.tolist())
    assert some_of_each(labels, 10).tolist() == list(range(10))


# --- the interval -----------------------------------------------------------------------------------------------------


def brute(trials: Trials, matrix: Any) -> None:
    """What the formulas of a kind of trials say, against a table of the trials between identities."""
    n = trials.identities
    upper = np.triu(matrix, 1)
    weight = np.random.default_rng(1).integers(0, 4, n).astype(np.float64)
    assert trials.count == upper.sum()
    np.testing.assert_allclose(trials.touching(), (upper + upper.T).sum(1))
    assert trials.weighted(weight) == pytest.approx(float((upper * np.outer(weight, weight)).sum()))
    assert trials.squares() == pytest.approx(float((upper**2).sum()))
    a, b = np.array([0, 2, 1]), np.array([1, 0, 2])
    np.testing.assert_allclose(trials.between(a, b), matrix[a, b])


def test_counts_of_trials_by_identity() -> None:
    counts = np.array([1, 4, 2, 3])
    brute(AllPairs(counts), np.outer(counts, counts))
    brute(Searches(counts), counts[:, None] + counts[None])
    first, second = np.array([0, 1, 2, 3, 0, 1, 0]), np.array([1, 2, 3, 0, 1, 0, 2])
    matrix = np.zeros((4, 4))
    np.add.at(matrix, (first, second), 1)
    brute(ListedPairs(first, second, 4), matrix + matrix.T)


def test_variance_is_the_sum_over_pairs_that_share_an_identity() -> None:
    rng = np.random.default_rng(0)
    counts = np.array([2, 1, 3, 1, 2])
    first, second = np.array([0, 0, 2, 3, 0]), np.array([2, 2, 4, 1, 4])
    accepts = Accepts(first, second, rng.random(5), AllPairs(counts))
    rest = np.zeros((5, 5))
    np.add.at(rest, (first, second), accepts.weight)
    rest = rest + rest.T - accepts.rate * np.outer(counts, counts)
    pairs = list(combinations(range(5), 2))
    wanted = sum(rest[p] * rest[q] for p in pairs for q in pairs if set(p) & set(q))
    own = sum(rest[p] ** 2 for p in pairs)
    found = variance(accepts)
    assert found.pairs * accepts.total**2 == pytest.approx(own)
    if wanted > own:
        assert found.whole * accepts.total**2 == pytest.approx(wanted)
    assert found.of_set(5, accepts.trials.count) == pytest.approx(found.whole)


@pytest.mark.parametrize("likeness", [0.0, 0.35])
def test_the_variance_is_that_of_other_people(likeness: float) -> None:
    """Against many sets that were really drawn anew; the plain bootstrap is far off where luck decides."""
    value = 0.75
    logs, told, plain = [], [], []
    for seed in range(150):
        material = people(60, 2, seed=seed, likeness=likeness)
        scores, same = all_scores(material)
        logs.append(np.log(float((scores[~same] > value).double().mean())))
        assert material.embeddings is not None
        a, b = pairs_above(material.embeddings, value)
        number, counts = material.numbered()
        first, second = number[a.numpy()], number[b.numpy()]
        other = first != second
        accepts = Accepts(first[other], second[other], np.ones(int(other.sum())), AllPairs(counts))
        told.append(variance(accepts).whole)
        if seed < 20:
            plain.append(replicates(accepts, 100, np.random.default_rng(seed)).var())
    real = float(np.var(logs))
    assert 0.7 < np.mean(told) / real < 1.4
    assert np.mean(plain) / real > (1.5 if likeness == 0 else 1.0)


@pytest.mark.parametrize(("likeness", "far"), [(0.0, 2e-3), (0.2, 1e-2)])
def test_the_rate_promised_is_found_again(likeness: float, far: float) -> None:
    """Threshold from half of the identities, rate on the other half, 50 times over."""
    inside = 0
    for seed in range(50):
        one = people(150, 2, seed=2 * seed, likeness=likeness)
        two = people(150, 2, seed=2 * seed + 1, likeness=likeness)
        threshold = choose(one, far, flip="none", model="", draws=QUICK)
        scores, same = all_scores(two)
        rate = float((scores[~same] > threshold.value).double().mean())
        inside += threshold.interval[0] <= rate <= threshold.interval[1]
    assert 45 <= inside <= 49


def test_a_second_set_of_another_size() -> None:
    one = people(200, 2, seed=0)
    threshold = choose(one, 1e-2, flip="none", model="", draws=QUICK)
    small, large = (check(one, threshold, people(n, 2, seed=9), QUICK) for n in (40, 600))
    assert small["expected"][1] - small["expected"][0] > large["expected"][1] - large["expected"][0]
    assert small["inside"]
    assert large["inside"]
    scores, same = all_scores(people(40, 2, seed=9))
    assert small["false_accepts"] == int((scores[~same] > threshold.value).sum())
    others = people(200, 2, seed=1, likeness=2.0)  # they look like each other
    assert not check(one, threshold, others, QUICK)["inside"]


def test_pairs_without_names_are_drawn_as_if_independent() -> None:
    material = people(100, 2, likeness=0.5)
    named = choose(as_list(material), 1e-2, flip="none", model="", draws=QUICK)
    nameless = choose(as_list(material, named=False), 1e-2, flip="none", model="", draws=QUICK)
    assert (named.unit, nameless.unit, nameless.identities) == ("identities", "pairs", None)
    assert nameless.value == named.value
    assert nameless.interval[1] - nameless.interval[0] < 0.8 * (named.interval[1] - named.interval[0])


# --- searches ---------------------------------------------------------------------------------------------------------


def test_false_alarms_are_those_of_galleries_that_are_drawn() -> None:
    material = people(60, 3, seed=3)
    found = choose_identification(material, 0.2, 15, flip="none", model="", draws=QUICK)
    assert material.embeddings is not None
    unit = torch.nn.functional.normalize(material.embeddings.double())
    scores = unit @ unit[::3].T  # (180, 60): every picture against the first of each identity
    number = np.arange(180) // 3
    rng = np.random.default_rng(0)
    alarms, searches, hits, mated = 0, 0, 0, 0
    for _ in range(300):
        chosen = rng.permutation(60)[:15]
        best = scores[:, chosen].max(1)
        stranger = ~np.isin(number, chosen)
        alarms += int((best.values[stranger] > found.value).sum())
        searches += int(stranger.sum())
        probe = ~stranger & (np.arange(180) % 3 > 0)
        right = chosen[best.indices[probe]] == number[probe]
        hits += int(((best.values[probe] > found.value).numpy() & right).sum())
        mated += int(probe.sum())
    assert alarms / searches == pytest.approx(0.2, abs=0.01)
    assert found.accept_rate == pytest.approx(hits / mated, abs=0.02)
    assert (found.name, found.kind, found.gallery) == ("fpir=2e-1@15", "identification", 15)
    assert found.interval[0] < 0.2 < found.interval[1]


def test_a_larger_gallery_needs_a_higher_threshold() -> None:
    material = people(200, 2)
    values = [
        choose_identification(material, 0.1, size, flip="none", model="", draws=QUICK).value for size in (1, 10, 100)
    ]
    assert values == sorted(values)
    assert len(set(values)) == 3


def test_false_alarms_are_found_again_elsewhere() -> None:
    inside = 0
    for seed in range(30):
        one, two = (people(150, 2, seed=2 * seed + half) for half in (0, 1))
        threshold = choose_identification(one, 0.1, 50, flip="none", model="", draws=QUICK)
        entry = check_identification(one, threshold, two, QUICK)
        assert entry is not None
        inside += entry["inside"]
    assert 26 <= inside <= 30
    assert check_identification(one, threshold, people(50), QUICK) is None


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_rate_that_the_data_cannot_resolve() -> None:
    said = r"would hold 1\.8 false accepts.*Give 300,000 impostor pairs.*7\d\d pictures"
    with pytest.raises(UnresolvedRateError, match=said) as e:
        choose(people(64), 1e-4, flip="none", model="")
    offered = float(str(e.value).split("calibrate.far=")[-1].split()[0])
    assert choose(people(64), offered, flip="none", model="", draws=QUICK).false_accepts >= 30
    with pytest.raises(UnresolvedRateError, match=r"64 identities.*calibrate\.gallery=32"):
        choose_identification(people(64), 0.2, 64, flip="none", model="")
    with pytest.raises(UnresolvedRateError, match=r"would hold 1\.9 false alarms.*Give 3,000 pictures"):
        choose_identification(people(64), 0.01, 10, flip="none", model="")
    with pytest.raises(UnresolvedRateError, match="is a list of pairs"):
        choose_identification(as_list(people(64)), 0.2, 10, flip="none", model="")


def test_scores_that_are_all_the_same() -> None:
    rows = torch.ones(60, 4)
    with pytest.raises(UnresolvedRateError, match="score exactly the same"):
        choose(Material("x", embeddings=rows, labels=torch.arange(60) // 2), 0.1, flip="none", model="")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"far": "abc"}, r"calibrate\.far='abc' is no rate"),
        ({"fpir": [1e-2, "abc"]}, r"calibrate\.fpir=\[0\.01, 'abc'\] is no rate"),
        ({"far": 0}, r"calibrate\.far"),
        ({"far": 1.0}, r"calibrate\.far"),
        ({"far": [1e-3, 2]}, r"calibrate\.far"),
        ({"fpir": -0.1}, r"calibrate\.fpir"),
        ({"gallery": 0}, r"calibrate\.gallery=0"),
        ({"pictures": 1.5}, r"calibrate\.pictures=1\.5"),
        ({"flip": "both"}, r"calibrate\.flip='both'"),
    ],
)
def test_words_out_of_range(words: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Calibrate(**words)


# --- by command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibrated(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A copy of the run, calibrated on the identities that it held out."""
    import shutil

    run = Path(shutil.copytree(run_folder, tmp_path_factory.mktemp("calibrated") / "run"))
    results = evaluate(
        f"run={run}",
        "calibrate.far=[0.05,0.02]",
        "calibrate.fpir=0.4",
        "calibrate.gallery=5",
        "settings.replicates=0",
        "plots=false",
        f"output_dir={run.parent / 'eval'}",
    )
    return run, results


def test_thresholds_go_into_the_run_and_from_there_into_the_export(
    calibrated: tuple[Path, dict[str, Any]], pictures: Path
) -> None:
    run, results = calibrated
    names = ["far=5e-2", "far=2e-2", "fpir=4e-1@5"]
    assert list(results["thresholds"]) == names
    found = Run(run).thresholds
    assert list(found) == names
    assert found["far=5e-2"].model == Run(run).network.fingerprint()
    assert found["far=5e-2"].chosen_on == "test"
    assert found["far=5e-2"].identities == 24
    assert results["metrics"]["test/auc"] > 0.9  # the protocols were run too
    about = export_run(run)
    assert dict(about.thresholds) == dict(found)
    recogniser = Recogniser.load(run / "export")
    a, b = sorted((pictures / "id00").iterdir())[:2]
    assert recogniser.compare(a, b, threshold="far=2e-2").far == 0.02
    assert recogniser.compare(a, b).far == 0.05


def test_the_threshold_holds_for_what_the_recogniser_computes(calibrated: tuple[Path, dict[str, Any]]) -> None:
    """Rates counted again through the export, from the pictures of the held-out identities."""
    run = calibrated[0]
    part = Run(run).verification_set("test")
    recogniser = Recogniser.load(run / "export")
    rows = recogniser.embed_pixels(part.images.fetch(np.arange(len(part.images))).permute(0, 2, 3, 1).numpy())
    scores, same = all_scores(Material("again", embeddings=torch.from_numpy(rows), labels=part.identity))
    for name in ("far=5e-2", "far=2e-2"):
        threshold = recogniser.threshold(name)
        assert threshold is not None
        assert int((scores[~same] > threshold.value - 1e-6).sum()) >= threshold.false_accepts
        assert int((scores[~same] > threshold.value + 1e-6).sum()) <= threshold.false_accepts


def test_a_set_that_is_too_small_writes_nothing(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnresolvedRateError, match="'test' would hold"):
        evaluate(f"run={run_folder}", "calibrate.far=1e-4", "plots=false", f"output_dir={tmp_path}")
    assert not (run_folder / "thresholds.json").exists()
    with pytest.raises(ExportError, match=r"has no held-out set 'val': there are test"):
        evaluate(
            f"run={run_folder}", f"+protocols.a={{type: run, path: {run_folder}, set: val}}", f"output_dir={tmp_path}"
        )
    with pytest.raises(ValueError, match=r"calibrate\.set=nobody"):
        evaluate(f"run={run_folder}", "calibrate.far=0.1", "calibrate.set=nobody", f"output_dir={tmp_path}")


def test_a_rate_that_the_set_cannot_resolve_is_said_before_others_are_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    embedded: list[str] = []

    def gathered(evaluator: Any, name: str, *_: Any, **words: Any) -> Material:
        embedded.append(name)
        return Material(name, embeddings=torch.eye(6), labels=torch.arange(6) // 2)

    monkeypatch.setattr("lightning_pfc.calibration.job.gather", gathered)
    evaluator: Any = SimpleNamespace(settings=SimpleNamespace(level=0.95, replicates=200, seed=0))
    protocols = {name: {"type": "run", "path": "x"} for name in ("val", "test")}
    with pytest.raises(UnresolvedRateError, match="12 impostor pairs of 'test' would hold"):
        calibrate(evaluator, protocols, Calibrate(far=1e-4, set="test"), model="")
    assert embedded == ["test"]


def test_a_calibration_keeps_to_the_identities_of_a_list(pictures: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    names = np.array([f"p{n % 10}/{n}" for n in range(40)])
    np.savez(tmp_path / "faces.npz", emb=rows, names=names, label=np.arange(40) % 10)
    (tmp_path / "some.txt").write_text("p1\np4\np7\n")
    protocol = {"type": "all_pairs", "path": tmp_path / "faces.npz", "identities": str(tmp_path / "some.txt")}
    found = gather(Evaluator(None), "faces", protocol, flip="none", pictures=10)
    assert found.labels is not None
    assert sorted(set(found.labels.tolist())) == [1, 4, 7]
    outside = tmp_path / "linked"
    (outside / "p").mkdir(parents=True)
    (outside / "p" / "a.png").symlink_to(next(pictures.rglob("*.png")))
    with pytest.raises(FormatError, match="allow"):
        gather(Evaluator(_Grey()), "linked", {"type": "all_pairs", "path": outside}, flip="none", pictures=10)
    allowed = EvaluationSettings(allow=[str(pictures)])
    found = gather(
        Evaluator(_Grey(), allowed), "linked", {"type": "all_pairs", "path": outside}, flip="none", pictures=1
    )
    assert found.labels is not None
    assert len(found.labels) == 1


class _Grey:
    """Small grey pictures are their own embeddings."""

    preprocessing = Preprocessing(size=(8, 12), channels=1, fit="pad", mean=(30.0,))
    input_size = preprocessing.image_shape

    def __call__(self, pictures: Tensor) -> Tensor:
        assert pictures.shape[1:] == self.input_size
        return pictures.flatten(1).float()


def test_a_runs_pictures_are_made_as_the_model_that_is_judged_wants_them(run_folder: Path, pictures: Path) -> None:
    """They were those of the run, whatever the model's size, and whatever the user said."""
    run = Run(run_folder)
    part = run.verification_set("test")
    assert isinstance(part.images, DecodedImages)
    encoded = part.images.encoded

    def seen(evaluator: Evaluator) -> Tensor:
        found = gather(
            evaluator, "x", {"type": "run", "path": run_folder, "set": "test"}, flip="none", pictures=len(encoded)
        ).embeddings
        assert found is not None
        judged = evaluator.embed(evaluator.held_out("x", str(run_folder), "test").images)
        assert torch.equal(judged if evaluator.flip == "none" else judged / 2, found.to(judged.dtype))
        return found

    record = _Grey.preprocessing
    words: list[dict[str, Any]] = [{}, {"fit": "crop"}, {"fit": "stretch", "resampling": "nearest"}]
    for said in words:
        settings = EvaluationSettings(flip="none", **said)
        wanted = [record.changed(**said).picture(encoded.read(n)).ravel() for n in range(len(encoded))]
        np.testing.assert_array_equal(seen(Evaluator(_Grey(), settings)).numpy(), np.stack(wanted))
    with pytest.raises(ValueError, match="there is no model"):
        Evaluator(None).run("x", {"type": "run", "path": str(run_folder)})

    own = run.preprocessing
    same = held_out(run, "test", own)
    assert same.images is part.images  # as the run's own test had them


def test_drawn_pictures_are_fitted_or_refused(tmp_path: Path) -> None:
    class Drawn:
        folder = tmp_path
        data = SimpleNamespace(preprocessing=None)

        def verification_set(self, name: str) -> VerificationSet:
            images = ArrayImages(np.arange(24 * 24 * 3, dtype=np.int64).reshape(3, 1, 24, 24).astype(np.uint8))
            return VerificationSet(images, None, torch.arange(3))  # type: ignore[arg-type]

    drawn: Any = Drawn()
    record = Preprocessing(size=(24, 24), channels=1)
    assert held_out(drawn, "test", record).images.image_shape == (1, 24, 24)
    half = record.changed(size=(12, 12), fit="stretch")
    index = np.arange(3)
    raw = drawn.verification_set("test").images.fetch(index).permute(0, 2, 3, 1).numpy()
    found = held_out(drawn, "test", half).images
    assert found.image_shape == (1, 12, 12)
    assert len(found) == 3
    np.testing.assert_array_equal(
        found.fetch(index).permute(0, 2, 3, 1), np.stack([half.pixels(picture) for picture in raw])
    )
    with pytest.raises(BrokenImageError, match="24 x 24 pixels instead of 12 x 12"):
        held_out(drawn, "test", half.changed(fit="exact")).images.fetch(index)
    with pytest.raises(ValueError, match="drawn with 1 channels, and the model wants 3"):
        held_out(drawn, "test", half.changed(channels=3))


def test_thresholds_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    def threshold(name: str, value: float) -> Threshold:
        return Threshold(name=name, kind="verification", value=value, rate=0.01, interval=(0.005, 0.02))

    path = tmp_path / "thresholds.json"
    write_thresholds(path, [threshold("a", 0.1), threshold("b", 0.2)])
    write_thresholds(path, [threshold("b", 0.3), threshold("c", 0.4)])
    found = read_thresholds(path)
    assert {name: t.value for name, t in found.items()} == {"a": 0.1, "b": 0.3, "c": 0.4}
    path.write_text(json.dumps({"thresholds": {"a": {"kind": "verification"}}}))
    with pytest.raises(ExportError, match=r"thresholds\.json: threshold 'a': value=None"):
        read_thresholds(path)
    assert len(Thresholds()) == 0
