"""Randomness by number: streams, their distributions, and permutations that are computed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lightning_pfc.data.counter import Permutation, bits, noise, normal, stream, uniform


def test_a_key_does_not_depend_on_its_neighbours() -> None:
    index = np.arange(1000)
    together = stream(7, 3, index)
    alone = np.concatenate([stream(7, 3, np.asarray([i])) for i in (0, 1, 17, 999)])
    assert (together[[0, 1, 17, 999]] == alone).all()
    assert (uniform(together, 5)[17] == uniform(together[17:18], 5)[0]).all()


def test_every_word_of_a_stream_matters_and_so_does_the_order() -> None:
    keys = {
        int(stream(*words)[0]) for words in [(1, 2, 3), (3, 2, 1), (1, 2), (1, 2, 4), (0, 2, 3), (1, 0, 3), (-1, 2, 3)]
    }
    assert len(keys) == 7


def test_the_words_are_those_of_splitmix64() -> None:
    # The published first outputs of SplitMix64 seeded with 0.
    assert bits(np.zeros(1, np.uint64), 3)[0].tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_the_stream_is_fixed_for_good() -> None:
    # A change would change every augmented image and every split.
    assert stream(0, 0, np.arange(3)).tolist() == [8400972143974238905, 643595692398300191, 10351237897682911318]


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    u = uniform(stream(0, np.arange(50_000)), 4)
    assert u.dtype == np.float32
    assert u.min() >= 0
    assert u.max() < 1
    for column in range(4):
        assert stats.kstest(u[:, column], "uniform").pvalue > 1e-3
    off_diagonal = np.corrcoef(u.T) - np.eye(4)
    assert np.abs(off_diagonal).max() < 0.02
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.02


@pytest.mark.parametrize("count", [1, 2, 7])
def test_normals_are_normal(count: int) -> None:
    x = normal(stream(1, np.arange(20_000)), count)
    assert x.shape == (20_000, count)
    assert stats.kstest(x.ravel(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("count", [6, 7, 1024])
def test_noise_has_mean_zero_and_variance_one(count: int) -> None:
    x = noise(stream(2, np.arange(3000)), count)
    assert x.shape == (3000, count)
    assert abs(x.mean()) < 0.02
    assert abs(x.std() - 1) < 0.02
    assert np.abs(x).max() < 2.45
    middle = np.corrcoef(x[:, 0], x[:, 1])[0, 1]
    assert abs(middle) < 0.06


def test_words_of_a_stream_are_distinct() -> None:
    assert len(np.unique(bits(stream(np.arange(1000)), 10))) == 10_000


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_a_permutation_hits_everything_once(size: int) -> None:
    for key in (0, 1, 2**70, -5):
        assert sorted(Permutation(size, key)(np.arange(size)).tolist()) == list(range(size))


def test_a_permutation_is_no_trace_of_its_input() -> None:
    size = 10_000
    element = Permutation(size, 5)(np.arange(size))
    assert abs(np.corrcoef(np.arange(size), element)[0, 1]) < 0.05
    assert (element != Permutation(size, 6)(np.arange(size))).mean() > 0.99
    # Where neighbours land is as far apart as chance has it: a third of the size.
    assert abs(np.abs(np.diff(element)).mean() / (size / 3) - 1) < 0.05


def test_every_element_is_equally_likely_everywhere() -> None:
    size = 7
    counts = np.zeros((size, size), dtype=int)
    for key in range(3500):
        counts[np.arange(size), Permutation(size, key)(np.arange(size))] += 1
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_a_permutation_of_a_billion_costs_nothing() -> None:
    some = Permutation(10**9, 1)(np.asarray([0, 1, 10**9 - 1]))
    assert len(set(some.tolist())) == 3
    assert (some < 10**9).all()


def test_positions_outside_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[0, 5\)"):
        Permutation(5, 0)(np.asarray([5]))
    with pytest.raises(ValueError, match="size=0"):
        Permutation(0, 0)
