"""All pairs by blocks against sorting all pairs; identification against the full score matrix."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_pfc.evaluation.all_pairs import AllPairsResult, all_pairs_tar
from lightning_pfc.evaluation.blockwise import UnitRows, entries_above
from lightning_pfc.evaluation.identification import (
    ProbeResults,
    identification_rate,
    rank_among_distractors,
    search,
    tpir_at_fpir,
)
from lightning_pfc.evaluation.impostor_search import ImpostorSearch
from lightning_pfc.metrics.functional import tar_at_far

FARS = (1.0, 0.3, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6)


def people(num: int, images: int, noise: float, seed: int, width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num).repeat_interleave(images)
    embeddings = torch.randn(num, width, generator=generator)[labels]
    embeddings = embeddings + noise * torch.randn(len(labels), width, generator=generator)
    order = torch.randperm(len(labels), generator=generator)
    return embeddings[order] * (0.5 + torch.rand(len(labels), 1, generator=generator)), labels[order] * 7


def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b = a.double(), b.double()
    return (a[:, None] * b[None]).sum(2) / (a.norm(dim=1)[:, None] * b.norm(dim=1))


def sorted_all(
    embeddings: torch.Tensor, labels: torch.Tensor, fars: Sequence[float]
) -> list[tuple[float, float, float, int]]:
    i, j = torch.triu_indices(len(labels), len(labels), 1)
    scores = UnitRows(embeddings).exact(i, j)
    return [tuple(tar_at_far(scores, labels[i] == labels[j], far)) for far in fars]  # type: ignore[misc]


def check(result: AllPairsResult, expected: list[tuple[float, float, float, int]]) -> None:
    for point, (tar, far, threshold, false_accepts) in zip(result.points, expected, strict=True):
        assert (point.false_accepts, point.threshold) == (false_accepts, threshold)
        assert point.tar == pytest.approx(tar, abs=1e-15)
        assert point.far == pytest.approx(far, abs=1e-15)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("block", [50, 64, 2048])
def test_all_pairs_is_what_sorting_gives(seed: int, block: int) -> None:
    embeddings, labels = people(70, 5, 1.0, seed)
    result = all_pairs_tar(embeddings, labels, FARS, block=block)
    check(result, sorted_all(embeddings, labels, FARS))
    assert result.num_genuine == 70 * 10
    assert result.num_impostor == 350 * 349 // 2 - 700
    assert result.pairs_by_identity.tolist() == [10] * 70
    assert result.accepted_by_identity.sum(1).tolist() == [p.true_accepts for p in result.points]


def test_ties_and_repeated_images_count_exactly() -> None:
    embeddings, labels = people(30, 4, 0.5, 1, width=2)
    embeddings = (embeddings * 1.5).round()  # many equal directions, a few zeros
    check(all_pairs_tar(embeddings, labels, FARS, block=32), sorted_all(embeddings, labels, FARS))
    constant = torch.ones(40, 8)
    result = all_pairs_tar(constant, torch.arange(40) // 2, (0.5, 1e-3), block=16)
    assert [(p.tar, p.false_accepts) for p in result.points] == [(0.0, 0)] * 2


@pytest.mark.parametrize("max_kept", [40, 400])
def test_little_memory_takes_more_passes_and_gives_the_same(max_kept: int) -> None:
    embeddings, labels = people(70, 5, 1.0, 4)
    result = all_pairs_tar(embeddings, labels, FARS, block=64, max_kept=max_kept)
    check(result, sorted_all(embeddings, labels, FARS))
    assert result.passes > 1


@pytest.mark.parametrize("bounds", [(0.9, 1.1), (-1.1, -0.9), (0.1, 0.1001)])
def test_wrong_guesses_are_found_out(monkeypatch: pytest.MonkeyPatch, bounds: tuple[float, float]) -> None:
    embeddings, labels = people(40, 4, 1.0, 5)
    monkeypatch.setattr(ImpostorSearch, "_guess", lambda self: dict.fromkeys(self.open, bounds))
    result = all_pairs_tar(embeddings, labels, (0.3, 1e-2), block=64)
    check(result, sorted_all(embeddings, labels, (0.3, 1e-2)))
    assert result.passes > 1


def test_too_many_ties_for_the_memory_are_refused() -> None:
    with pytest.raises(ValueError, match="max_kept=20 pairs score"):
        all_pairs_tar(torch.ones(60, 8), torch.arange(60) // 2, (0.1,), max_kept=20)


def test_all_pairs_refuses_bad_input() -> None:
    embeddings, labels = people(5, 3, 0.1, 0)
    with pytest.raises(ValueError, match="both kinds"):
        all_pairs_tar(embeddings, torch.arange(15))
    with pytest.raises(ValueError, match="both kinds"):
        all_pairs_tar(embeddings, torch.zeros(15, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels must be \(N,\)"):
        all_pairs_tar(embeddings, labels[1:])
    with pytest.raises(ValueError, match=r"fars=0\.0"):
        all_pairs_tar(embeddings, labels, [0.0])
    embeddings[3, 2] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity in row 3"):
        all_pairs_tar(embeddings, labels)


@pytest.mark.parametrize("shape", [(7, 5), (64, 64), (128, 96)])
@pytest.mark.parametrize("floor", [-3.0, 0.0, 1.5, 2.5, 9.0])
def test_entries_above(shape: tuple[int, int], floor: float) -> None:
    block = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    position, values = entries_above(block, floor)
    assert torch.equal(position, (block.flatten() > floor).nonzero().squeeze(1))
    assert torch.equal(values, block.flatten()[position])


def slow_search(probes: torch.Tensor, p: torch.Tensor, gallery: torch.Tensor, g: torch.Tensor) -> ProbeResults:
    scores, mate = cosines(probes, gallery), p[:, None] == g[None]
    best = torch.where(mate, scores, -9.0).amax(1)
    rank = ((scores >= best[:, None]) & ~mate).sum(1)
    return ProbeResults(mate.any(1), rank, torch.where(mate.any(1), best, scores.amax(1)))


@pytest.mark.parametrize("block", [9, 4096])
@pytest.mark.parametrize("ties", [False, True])
def test_search_is_the_full_matrix(block: int, ties: bool) -> None:
    embeddings, labels = people(60, 4, 1.5, 3, width=3 if ties else 16)
    if ties:
        embeddings = embeddings.sign()
    cut = 90
    gallery_labels = torch.where(labels[cut:] % 5 == 0, -1, labels[cut:])
    got = search(embeddings[:cut], labels[:cut], embeddings[cut:], gallery_labels, block=block)
    expected = slow_search(embeddings[:cut], labels[:cut], embeddings[cut:], gallery_labels)
    assert torch.equal(got.mated, expected.mated)
    assert 0 < int(got.mated.sum()) < cut
    assert torch.equal(got.rank[got.mated], expected.rank[got.mated])
    torch.testing.assert_close(got.score, expected.score, atol=1e-14, rtol=0)


def test_open_set_rates_by_hand() -> None:
    mated = torch.tensor([True, True, True, True, False, False, False, False])
    rank = torch.tensor([0, 0, 1, 0, 0, 0, 0, 0])
    score = torch.tensor([0.9, 0.5, 0.8, 0.65, 0.7, 0.6, 0.4, 0.3], dtype=torch.float64)
    results = ProbeResults(mated, rank, score)
    assert identification_rate(rank[mated], 1) == 0.75
    assert identification_rate(rank[mated], 2) == 1.0
    assert tpir_at_fpir(results, 0.25) == (0.5, 0.6)  # one of four may pass; above 0.6: 0.9 and 0.65
    assert tpir_at_fpir(results, 0.1) == (0.25, 0.7)
    assert tpir_at_fpir(results, 1.0) == (0.75, float("-inf"))
    with pytest.raises(ValueError, match="with and without mates"):
        tpir_at_fpir(ProbeResults(torch.ones(8, dtype=torch.bool), rank, score), 0.1)
    with pytest.raises(ValueError, match="k=0"):
        identification_rate(rank, 0)


def test_equal_embeddings_identify_nobody() -> None:
    results = search(torch.ones(4, 3), torch.arange(4), torch.ones(4, 3), torch.arange(4))
    assert results.rank.tolist() == [3] * 4


@pytest.mark.parametrize("block", [7, 4096])
def test_distractors_rank_every_pair_of_mates(block: int) -> None:
    embeddings, labels = people(12, 5, 1.5, 6)
    keep = torch.rand(60, generator=torch.Generator().manual_seed(1)) < 0.6  # identities of unequal size, some alone
    embeddings, labels = embeddings[keep], labels[keep]
    distractors = torch.randn(150, 16, generator=torch.Generator().manual_seed(2))
    who, rank = rank_among_distractors(embeddings, labels, distractors, block=block)
    mates, others = cosines(embeddings, embeddings), cosines(embeddings, distractors)
    expected = []
    for i in range(len(labels)):
        trials = [mates[i, j] for j in range(len(labels)) if j != i and labels[j] == labels[i]]
        expected += [(int(labels[i]), int((others[i] >= s).sum())) for s in sorted(trials)]
    assert list(zip(who.tolist(), rank.tolist(), strict=True)) == expected
    with pytest.raises(ValueError, match="distractors is empty"):
        rank_among_distractors(embeddings, labels, distractors[:0])
    with pytest.raises(ValueError, match="no identity with two images"):
        rank_among_distractors(embeddings, torch.arange(len(labels)), distractors)


@pytest.fixture(scope="module")
def lfw() -> tuple[torch.Tensor, torch.Tensor]:
    folder = os.environ.get("PFC_TEST_DATA", "")
    path = Path(folder) / "lfw_mobilefacenet_embeddings.npz"
    if not folder or not path.is_file():
        pytest.skip("PFC_TEST_DATA does not name a folder with lfw_mobilefacenet_embeddings.npz")
    content = np.load(path)
    return torch.from_numpy(content["emb"]).float(), torch.from_numpy(content["label"]).long()


def test_all_pairs_of_lfw(lfw: tuple[torch.Tensor, torch.Tensor]) -> None:
    result = all_pairs_tar(*lfw, (1e-3, 1e-4, 1e-5, 1e-6))
    assert (result.num_genuine, result.num_genuine + result.num_impostor) == (242_257, 87_549_528)
    assert [round(p.tar, 3) for p in result.points] == [0.991, 0.977, 0.941, 0.847]


def test_open_set_of_lfw(lfw: tuple[torch.Tensor, torch.Tensor]) -> None:
    embeddings, labels = lfw
    several = torch.bincount(labels)[labels] > 1
    first = torch.ones_like(several)
    first[1:] = labels[1:] != labels[:-1]
    enrolled = several & first
    results = search(embeddings[~enrolled], labels[~enrolled], embeddings[enrolled], labels[enrolled])
    assert (int(enrolled.sum()), int(results.mated.sum()), int((~results.mated).sum())) == (1680, 7484, 4069)
    assert round(identification_rate(results.rank[results.mated], 1), 3) == 0.972
    assert [round(tpir_at_fpir(results, fpir)[0], 3) for fpir in (0.1, 0.01)] == [0.950, 0.896]
