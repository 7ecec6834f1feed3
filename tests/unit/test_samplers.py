"""Samplers on one process: contract, arguments, expectation of the corrections, a user's own."""

from __future__ import annotations

import copy
import inspect
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_pfc import PartialFC
from lightning_pfc.distributed import ClassShard
from lightning_pfc.heads import sampling as S
from lightning_pfc.heads.sampling import background_index, ivf_index
from lightning_pfc.heads.sampling.sampled_classes import SampledClasses
from lightning_pfc.heads.sampling.uniform_draw import sample_uniform
from lightning_pfc.losses import ArcFace, CosFace, DSoftmax, NormFace, SphereFace2, SubCenterArcFace

CLASSES, DIM = 60, 6

ALL: list[S.Sampler] = [
    S.Uniform(),
    S.Uniform(correction=True),
    S.PositivesOnly(),
    S.RateSchedule(start=0.8, steps=3),
    S.RateSchedule(sampler={"name": "frequency", "alpha": 1.0}, start=0.1, begin=2, steps=2, shape="step"),
    S.Frequency(),
    S.Frequency(alpha=-1.0, correction=True),
    S.Retrieval(refresh=2),
    S.Retrieval(query="target", probes=2, cells=5),
    S.Retrieval(background=True, refresh=2),
    S.Mixed(share=0.25),
    S.Mixed(correction=True),
    S.Dissection(),
    S.Dissection(correction=True),
    S.Recent(),
    S.Recent(share=0.5),
]


def make_head(sampler: S.Sampler | str | dict, rate: float = 0.4, loss=None, **options) -> PartialFC:
    head = PartialFC(
        embedding_dim=DIM, num_classes=CLASSES, loss=loss or NormFace(scale=6.0), sample_rate=rate, sampler=sampler,
        init_std=1.0, **options,
    ).to("cpu")  # fmt: skip
    head.set_class_counts(1 + torch.arange(CLASSES) % 9)
    return head


def batch(step: int, rows: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(rows, DIM, generator=generator), torch.randint(0, CLASSES, (rows,), generator=generator)


def draw(head: PartialFC, x: Tensor, labels: Tensor) -> SampledClasses:
    return head._sample(labels, labels, head._gather(x, labels, "test"))


@pytest.mark.parametrize("sampler", ALL, ids=str)
def test_contract(sampler):
    """Targets are there, every class once, the budget is kept, and the value is that of the classes drawn."""
    head = make_head(sampler)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
    for step in range(6):
        x, labels = batch(step)
        x.requires_grad_()
        sample = copy.deepcopy(draw(copy.deepcopy(head), x, labels))
        ids = torch.arange(CLASSES) if sample.index is None else sample.index
        assert torch.equal(ids, ids.unique())
        assert torch.equal(ids[sample.columns], labels)
        if isinstance(sampler, S.PositivesOnly):
            assert torch.equal(ids, labels.unique())
        elif isinstance(sampler, S.RateSchedule):
            budget = [48, 40, 32, 24, 24, 24] if sampler.shape == "linear" else [6, 6, 6, 6, 24, 24]
            assert sample.num_sampled == max(budget[step], labels.unique().numel())
        elif isinstance(sampler, S.Dissection):
            assert (sample.log_weight > -math.inf).sum() == sample.num_sampled == 24
        else:
            assert ids.numel() == sample.num_sampled == 24
        optimizer.zero_grad()
        background = getattr(sampler, "background", False)
        value = head(x, labels)
        if not background:  # a thread may be done between the two
            weights = torch.zeros(len(ids)) if sample.log_weight is None else sample.log_weight.float()
            logits = 6.0 * F.normalize(x.detach()) @ F.normalize(head.weight.detach()[ids]).t()
            logits = torch.where(F.one_hot(sample.columns, len(ids)).bool(), logits, logits + weights)
            torch.testing.assert_close(value.detach(), F.cross_entropy(logits, sample.columns), rtol=1e-5, atol=1e-6)
        value.backward()
        optimizer.step()


@pytest.mark.parametrize("sampler", [s for s in ALL if s.correction], ids=str)
def test_correction_makes_the_normalizer_exact_in_expectation(sampler):
    """The mean of the weighted sums over the negatives is the full sum: within 5 standard errors, for every row."""
    head = make_head(sampler, rate=0.3)
    x, labels = batch(11)
    terms = torch.exp(2.0 * F.normalize(x) @ F.normalize(head.weight.detach()).t()).double()
    mine = F.one_hot(labels, CLASSES).bool()
    full = terms.masked_fill(mine, 0.0).sum(1)
    draws = 3000
    sums = torch.zeros(draws, len(x), dtype=torch.float64)
    plain = torch.zeros_like(sums)
    gathered = head._gather(x, labels, "test")
    for i in range(draws):
        head.step.fill_(i)
        sample = head._sample(labels, labels, gathered)
        chosen = terms.masked_fill(mine, 0.0)[:, sample.index]
        sums[i], plain[i] = (chosen * sample.log_weight.double().exp()).sum(1), chosen.sum(1)
    error = sums.std(0) / draws**0.5
    assert ((sums.mean(0) - full).abs() < 5 * error + 1e-6).all()
    assert ((plain.mean(0) - full).abs() > 20 * error).all()


def test_frequency_draws_by_count():
    """The first of the race is drawn in exact proportion to count ** alpha (chi-square, 5 sigma)."""
    head = make_head(S.Frequency(alpha=0.7), rate=2 / CLASSES)
    labels = torch.tensor([0])
    hits = torch.zeros(CLASSES)
    draws = 6000
    for i in range(draws):
        head.step.fill_(i)
        index = head._sample(labels, labels).index
        hits[index[index != 0]] += 1
    weights = (1.0 + torch.arange(CLASSES) % 9) ** 0.7
    weights[0] = 0
    expected = draws * weights / weights.sum()
    chi = ((hits - expected)[1:] ** 2 / expected[1:]).sum()
    assert abs(chi - (CLASSES - 2)) < 5 * (2 * (CLASSES - 2)) ** 0.5


def test_frequency_needs_counts():
    head = PartialFC(embedding_dim=DIM, num_classes=CLASSES, loss=ArcFace(), sample_rate=0.2, sampler="frequency")
    x, labels = batch(0)
    with pytest.raises(ValueError, match="set_class_counts"):
        head(x, labels)
    with pytest.raises(ValueError, match=r"\(60,\)"):
        head.set_class_counts(torch.ones(3))
    head.set_class_counts(torch.zeros(CLASSES, dtype=torch.int64))
    head(x, labels)


def test_retrieval_finds_the_nearest():
    """With every cell looked into, the retrieved classes are those of an exhaustive search."""
    head = make_head(S.Retrieval(probes=100))
    for step in range(4):
        x, labels = batch(step)
        sample = draw(head, x, labels)
        targets = labels.unique()
        best = (F.normalize(x) @ F.normalize(head.weight.detach()).t()).amax(0)
        best[targets] = -2.0
        want = torch.cat([targets, best.topk(24 - len(targets)).indices]).sort().values
        assert torch.equal(sample.index, want)


def test_few_probes_find_most_of_the_nearest():
    """On centers with structure, 4 of 45 cells hold over nine tenths of the hundred nearest classes."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.randn(40, 32, generator=generator)
    weight = groups.repeat_interleave(50, 0) + 0.5 * torch.randn(2000, 32, generator=generator)
    head = PartialFC(embedding_dim=32, num_classes=2000, loss=ArcFace(), sample_rate=0.1, sampler="retrieval").to("cpu")
    with torch.no_grad():
        head.weight.copy_(weight)
    x = F.normalize(weight[::100] + 0.3 * torch.randn(20, 32, generator=generator))
    labels = torch.arange(0, 2000, 100)
    sample = draw(head, x, labels)
    best = (x @ F.normalize(weight).t()).amax(0)
    best[labels] = -2.0
    nearest = set(best.topk(100).indices.tolist())
    assert len(nearest & set(sample.index.tolist())) > 90


def test_the_index_follows_the_centers():
    """After centers have moved, a refresh finds them where they are; before it, not all."""
    head = make_head(S.Retrieval(refresh=10, probes=1), rate=0.5)
    x, labels = batch(0)
    head(x, labels)
    with torch.no_grad():
        head.weight.copy_(torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(5)))
    nearest = ivf_index.nearest(head.weight.detach(), head.sampler_pivots)
    assert (head.sampled_cell != nearest).any()
    for step in range(1, 11):  # all ten tenths
        head(*batch(step))
        if step == 9:
            assert (head.sampled_cell == nearest).float().mean() > 0.85
    assert not torch.equal(head.sampler_pivots, make_head(head.sampler).sampler_pivots)


def test_background_refresh_takes_over(monkeypatch):
    head = make_head(S.Retrieval(refresh=3, background=True))
    for step in range(4):
        head(*batch(step))
    head._sampler_cache["cells"]._job.result()
    with torch.no_grad():
        head.sampled_cell.fill_(0)
    head(*batch(4))
    assert head.sampled_cell.unique().numel() > 1
    copied = copy.deepcopy(head)
    assert copied._sampler_cache == {}
    copied(*batch(5))


@pytest.mark.skipif(not background_index.has_faiss(), reason="faiss is not installed")
@pytest.mark.parametrize("background", [False, True])
def test_faiss_finds_what_we_find(background):
    own, theirs = make_head(S.Retrieval(probes=100)), make_head(S.Retrieval(index="faiss", background=background))
    x, labels = batch(3)
    assert torch.equal(draw(own, x, labels).index, draw(theirs, x, labels).index)
    theirs(x, labels)
    with pytest.raises(ValueError, match="cells"):
        S.Retrieval(index="faiss", cells=3)


@pytest.mark.skipif(background_index.has_faiss(), reason="faiss is installed")
def test_faiss_missing_says_so():
    with pytest.raises(ValueError, match="pip install faiss-cpu"):
        S.Retrieval(index="faiss")


def test_mixed_holds_its_share_of_the_nearest():
    head = make_head(S.Mixed(share=0.5, probes=100))
    x, labels = batch(2)
    targets = labels.unique()
    best = (F.normalize(x) @ F.normalize(head.weight.detach()).t()).amax(0)
    best[targets] = -2.0
    hard = set(best.topk(round(0.5 * (24 - len(targets)))).indices.tolist())
    assert hard <= set(draw(head, x, labels).index.tolist())


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_recent_is_a_queue_of_classes(share):
    """Beside the targets, the classes that left the batch last, as a list kept by hand says."""
    head = make_head(S.Recent(share=share), rate=0.5)  # 30 classes
    queue: list[int] = []  # latest first
    for step in range(30):
        x, labels = batch(step)
        targets = labels.unique().tolist()
        queue = targets + [c for c in queue if c not in targets]
        drawn = set(draw(head, x, labels).index.tolist())
        length = len(targets) + round(share * (30 - len(targets)))
        assert set(queue[:length]) <= drawn
        assert len(drawn) == 30
        head.step += 1
    assert (set(queue[:30]) == drawn) == (share == 1.0)


def test_dissection_leaves_undrawn_targets_out_of_the_negatives():
    head = make_head(S.Dissection(), rate=0.1, loss=DSoftmax(scale=6.0))
    x, labels = batch(1)
    sample = draw(head, x, labels)
    drawn = sample_uniform(labels[:0], labels[:0], ClassShard(CLASSES), 6, 0, torch.tensor(0)).index
    x.requires_grad_()
    value = head(x, labels)
    cosine = F.normalize(x) @ F.normalize(head.weight).t()
    target = cosine.gather(1, labels[:, None]).squeeze(1)
    negatives = torch.exp(6.0 * cosine).masked_fill(F.one_hot(labels, CLASSES).bool(), 0.0)[:, drawn].sum(1)
    want = (F.softplus(6.0 * (0.9 - target)) + torch.log1p(negatives)).mean()
    torch.testing.assert_close(value, want)
    got_grads = torch.autograd.grad(value, [x, head.weight])
    torch.testing.assert_close(got_grads, torch.autograd.grad(want, [x, head.weight]), rtol=1e-4, atol=1e-6)
    assert set(sample.index.tolist()) == set(drawn.tolist()) | set(labels.tolist())


def test_several_centers_a_class():
    for sampler in ("retrieval", {"name": "mixed", "query": "target"}):
        head = make_head(sampler, loss=SubCenterArcFace(centers=2, scale=8.0))
        for step in range(3):
            head(*batch(step)).backward()


def test_default_is_uniform_and_rate_one_is_exact():
    x, labels = batch(0)
    plain = PartialFC(embedding_dim=DIM, num_classes=CLASSES, loss=CosFace(), sample_rate=0.3)
    named = make_head(
        "uniform",
        0.3,
        CosFace(),
    )
    named.init_std = plain.init_std
    assert plain.sampler == S.Uniform()
    assert torch.equal(plain._sample(labels, labels).index, named._sample(labels, labels).index)
    exact = make_head("uniform", 1.0)
    for sampler in (s for s in ALL if not isinstance(s, S.PositivesOnly | S.RateSchedule)):
        head = make_head(sampler, 1.0)
        assert not head.is_subsampling
        assert torch.equal(head(x, labels), exact(x, labels))
    assert make_head("positives_only", 1.0).is_subsampling
    assert make_head(S.RateSchedule(start=0.5), 1.0).is_subsampling


def test_a_checkpoint_goes_on_exactly():
    for sampler in (s for s in ALL if not getattr(s, "background", False)):
        whole, first = make_head(sampler), make_head(sampler)
        for step in range(3):
            whole(*batch(step)), first(*batch(step))
        second = make_head(sampler, seed=0)
        second.load_state_dict(first.state_dict())
        for step in range(3, 6):
            assert torch.equal(whole(*batch(step)), second(*batch(step)))


def test_another_sampler_goes_on_from_a_checkpoint():
    one, other = make_head("retrieval"), make_head("frequency")
    one(*batch(0))
    other.load_state_dict(one.state_dict())
    other(*batch(1))
    one.load_state_dict(make_head("uniform").state_dict())
    one(*batch(1))


@dataclass(frozen=True, kw_only=True)
class Neighbours(S.Sampler):
    """Classes with ids near a target's: for catalogues in which neighbours are alike."""

    radius: int = 5

    def __post_init__(self):
        super().__post_init__()
        self._check_count("radius")

    def classes(self, context):
        offsets = torch.arange(-self.radius, self.radius + 1, device=context.targets.device)
        near = context.targets[:, None] + offsets
        return near.clamp(0, context.num_classes - 1).flatten()


@pytest.mark.parametrize("fill_with_uniform", [False, True])
def test_a_sampler_of_ones_own(fill_with_uniform, monkeypatch):
    monkeypatch.setattr(Neighbours, "fill_with_uniform", fill_with_uniform)
    head = make_head({"name": "neighbours", "radius": 2}, rate=0.9)
    labels = torch.tensor([0, 30, 30])
    sample = head._sample(labels, labels)
    near = [0, 1, 2, 28, 29, 30, 31, 32]
    assert set(near) <= set(sample.index.tolist())
    assert len(sample.index) == sample.num_sampled == (54 if fill_with_uniform else 8)
    head(torch.randn(3, DIM), labels).backward()


def test_names_and_arguments():
    assert S.sampler_from_config("Positives_Only") == S.PositivesOnly()
    for sampler in ALL:
        assert S.sampler_from_config(sampler.to_config()) == sampler
    with pytest.raises(ValueError, match="Did you mean Mixed"):
        S.sampler_from_config("mixd")
    with pytest.raises(TypeError, match="shares"):
        S.sampler_from_config({"name": "mixed", "shares": 0.2})
    for wrong, text in (
        ({"name": "mixed", "share": 1.5}, "share must lie in"),
        ({"name": "retrieval", "refresh": 0}, "refresh must be an integer"),
        ({"name": "retrieval", "query": "x"}, "query must be one of"),
        ({"name": "retrieval", "correction": True}, "probabilities"),
        ({"name": "positives_only", "correction": True}, "probabilities"),
        ({"name": "frequency", "alpha": 9}, "alpha must lie in"),
        ({"name": "recent", "share": -0.1}, "share must lie in"),
        ({"name": "recent", "correction": True}, "probabilities"),
        ({"name": "rate_schedule", "start": 2.0}, "start must lie in"),
        ({"name": "rate_schedule", "shape": "cosine"}, "shape must be one of"),
    ):
        with pytest.raises(ValueError, match=text):
            S.sampler_from_config(wrong)
    with pytest.raises(TypeError, match="True or False"):
        S.Uniform(correction=1)
    for loss in (NormFace(label_smoothing=0.1), SphereFace2()):
        with pytest.raises(ValueError, match="leave out one"):
            make_head(S.Uniform(correction=True), loss=loss)
    with pytest.raises(TypeError, match="floating"):
        make_head("uniform", dtype="int8")
    assert make_head("uniform", dtype="bfloat16").weight.dtype == torch.bfloat16


def test_static_shapes_weigh_the_same_classes():
    """What an accelerator runs: padded, with the same classes and weights."""
    labels = torch.tensor([3, 40, 40, 7])
    exact = sample_uniform(labels, labels, ClassShard(CLASSES), 20, 5, torch.tensor(2))
    padded = sample_uniform(labels, labels, ClassShard(CLASSES), 20, 5, torch.tensor(2), static_shapes=True)
    weighted = replace(padded, log_weight=torch.full(padded.index.shape, 0.5))
    assert torch.equal(padded.index[padded.valid], exact.index)
    offsets = weighted.rows.logit_offsets(torch.float32)
    assert (offsets[padded.valid] == 0.5).all()
    assert (offsets[~padded.valid] == -math.inf).all()


def test_the_example_of_the_documentation_is_the_one_tested_here():
    """Every sampler has its row, and the code shown is the class above."""
    text = (Path(__file__).parents[2] / "docs" / "samplers.md").read_text()
    for name in set(S.sampler_names()) & set(S.__all__):  # tests make some of their own
        assert f"| `{name}` |" in text
    shown = text.split("class Neighbours(Sampler):")[1].split("```")[0].split()
    here = inspect.getsource(Neighbours).split("class Neighbours(S.Sampler):")[1].split()
    assert shown == here
