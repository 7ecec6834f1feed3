"""``precision`` of a head's products: its words, what ``auto`` becomes, and that nothing else decides."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_pfc import PartialFC, losses
from lightning_pfc.evaluation.all_pairs import all_pairs_tar
from lightning_pfc.heads.softmax.precision import resolve_precision
from lightning_pfc.matmul.in_precision import matmul

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
WORDS = ["float32", "tf32", "bfloat16", "float16", "float16x3"]
ENGINES = [losses.ArcFace(), losses.CurricularFace(), losses.Softmax(bias=True), losses.SubCenterArcFace()]


def make(loss: Any = "arcface", **options: Any) -> PartialFC:
    return PartialFC(**{"embedding_dim": 16, "num_classes": 70, "loss": loss, "init_std": 1.0} | options)


def step(head: PartialFC, x: Tensor, *, autocast: torch.dtype | None = None) -> list[Tensor]:
    """Loss and gradients of a batch; forward and backward both within autocast, if asked for."""
    leaf, labels = x.clone().requires_grad_(), torch.arange(len(x)) % head.num_classes
    head.zero_grad()
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        loss = head(leaf, labels)
        loss.backward()
    assert leaf.grad is not None
    return [loss.detach(), leaf.grad, *(p.grad.clone() for p in head.parameters() if p.grad is not None)]


@pytest.mark.parametrize("word", ["half", "bf16", "", "Float32"])
def test_an_unknown_word(word: str) -> None:
    with pytest.raises(ValueError, match=f"precision='{word}' is unknown; use one of auto, float32, tf32, bfloat16"):
        make(precision=word)


@pytest.mark.parametrize("budget", ["slim", -1])
def test_an_unknown_budget(budget: Any) -> None:
    with pytest.raises(ValueError, match=f"memory_budget={budget!r} must be a number of bytes.*lean, fast"):
        make(memory_budget=budget)


def test_leaving_out_gradients_needs_float32() -> None:
    with pytest.raises(
        ValueError, match=r"gradient_filter=0\.1 works in float32, and precision='bfloat16'; leave one out"
    ):
        make(precision="bfloat16", gradient_filter=0.1)


@pytest.mark.parametrize(
    ("device", "trainer", "expected"),
    [
        (CPU, None, "float32"),
        (CPU, "bf16-mixed", "float32"),
        (CUDA, None, "float32"),
        (CUDA, "16-mixed", "bfloat16"),
        (CUDA, "bf16-mixed", "bfloat16"),
        (CUDA, "bf16-true", "bfloat16"),
        (CUDA, "16-true", "bfloat16"),
        (CUDA, "32-true", "float32"),
        (CUDA, "64-true", "float32"),
    ],
)
def test_what_auto_becomes(device: torch.device, trainer: str | None, expected: str) -> None:
    assert resolve_precision("auto", device, trainer) == expected
    assert all(resolve_precision(word, device, trainer) == word for word in WORDS)


def test_tf32_is_taken_where_the_user_allows_it() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert resolve_precision("auto", CUDA, "32-true") == "tf32"
        assert resolve_precision("auto", CPU, "32-true") == "float32"
    finally:
        torch.set_float32_matmul_precision(before)


def test_auto_is_settled_once() -> None:
    head = make()
    assert head.precision == "auto"
    step(head, torch.randn(4, 16))
    assert head.precision == "float32"  # type: ignore[comparison-overlap]
    assert head.settle_precision(CUDA, "bf16-mixed") == "float32"
    assert head.precision == "float32"
    assert "precision=float32" in repr(head)


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("word", ["float32", "bfloat16"])
@pytest.mark.parametrize("loss", ENGINES, ids=str)
def test_autocast_changes_nothing(loss: Any, word: Any, autocast: torch.dtype) -> None:
    torch.manual_seed(0)
    x, head = torch.randn(12, 16), make(loss, precision=word)
    state = {name: value.clone() for name, value in head.to("cpu").state_dict().items()}
    usual = step(head, x)
    head.load_state_dict(state)
    for one, other in zip(usual, step(head, x, autocast=autocast), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("loss", ENGINES, ids=str)
def test_the_user_s_own_setting_changes_nothing_and_stays(loss: Any) -> None:
    torch.manual_seed(0)
    x, head = torch.randn(12, 16), make(loss)
    state = {name: value.clone() for name, value in head.to("cpu").state_dict().items()}
    usual, before = step(head, x), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        head.load_state_dict(state)
        again = step(head, x)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    for one, other in zip(usual, again, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("word", ["bfloat16", "float16x3"])
def test_a_checkpoint_knows_it(word: Any, recwarn: pytest.WarningsRecorder) -> None:
    trained = make(precision=word).to("cpu")
    for heir in (make(), copy.deepcopy(trained), pickle.loads(pickle.dumps(trained))):
        heir.load_state_dict(trained.state_dict())
        assert heir.precision == word
        assert heir.settle_precision(CPU, "32-true") == word
        assert torch.equal(heir.precision_code, trained.precision_code)
    assert not recwarn


def test_a_word_of_the_user_s_goes_before_the_checkpoint() -> None:
    heir = make(precision="tf32").to("cpu")
    with pytest.warns(UserWarning, match="trained with precision='bfloat16' and goes on with 'tf32'"):
        heir.load_state_dict(make(precision="bfloat16").to("cpu").state_dict())
    assert heir.precision == "tf32"
    assert torch.equal(heir.precision_code, make(precision="tf32").precision_code)


def test_a_checkpoint_of_an_earlier_version_says_nothing() -> None:
    state = make().to("cpu").state_dict()
    del state["precision_code"]
    heir = make(precision="bfloat16").to("cpu")
    heir.load_state_dict(state)
    assert heir.precision == "bfloat16"


class Plain(L.LightningModule):
    """Somebody's own module, whose head is built late."""

    def configure_model(self) -> None:
        if not hasattr(self, "head"):
            self.backbone, self.head = nn.Linear(8, 16), make()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.head(self.backbone(batch[0]), batch[1])
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("strategy", ["auto", "pfc"])
def test_a_trainer_settles_it_and_says_so(strategy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """As on an accelerator: the Trainer's precision decides, whatever strategy it has."""
    monkeypatch.setattr(PartialFC, "device", CUDA)
    trainer = L.Trainer(
        strategy=strategy, accelerator="cpu", devices=1, precision="bf16-mixed", max_steps=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    module = Plain()
    data = torch.utils.data.TensorDataset(torch.randn(8, 8), torch.arange(8))
    said: list[str] = []
    monkeypatch.setattr("lightning_pfc.strategies.settle_precision.rank_zero_info", said.append)
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4))
    if dist.is_initialized():
        dist.destroy_process_group()
    assert module.head.precision == "bfloat16"
    assert said == ["head: products in bfloat16 (precision=auto, the Trainer's is bf16-mixed)"]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("loss", ENGINES, ids=str)
def test_lean_and_fast_give_the_same(loss: Any, word: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(12, 16)
    results = []
    for budget in ("lean", "fast", 3000):
        head = make(loss, precision=word, memory_budget=budget, chunk_size=13, seed=1).to("cpu")
        results.append(step(head, x))
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            assert F.mse_loss(mine, theirs) <= 1e-12 * theirs.square().mean().clamp(min=1e-30)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("may_round", [False, True])
def test_a_product_stands_where_it_was_asked_for(word: Any, dtype: Any, out_dtype: Any, may_round: bool) -> None:
    if word in ("float32", "tf32"):  # torch.mm wants the dtype of its operands there
        out_dtype = dtype
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, dtype=dtype, generator=generator) for size in ((5, 16), (16, 7)))
    out = torch.full((5, 7), torch.nan, dtype=out_dtype)
    given = matmul(a, b, word, out=out, may_round_result=may_round)
    assert given.data_ptr() == out.data_ptr()
    assert (out.double() - a.double() @ b.double()).abs().max() < 0.1


HOLDERS: list[Any] = [torch.backends, torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
TWO_WAYS = all(hasattr(holder, "fp32_precision") for holder in HOLDERS)


@pytest.fixture
def nothing_said() -> Iterator[None]:
    """What other tests have asked the older way stays set for good: here nobody has asked for anything."""
    for holder in HOLDERS:
        holder.fp32_precision = "none"
    yield
    for holder in HOLDERS:
        holder.fp32_precision = "none"


@pytest.mark.skipif(not TWO_WAYS, reason="this PyTorch has one way to say it")
@pytest.mark.usefixtures("nothing_said")
@pytest.mark.parametrize(("place", "expected"), [(0, "tf32"), (1, "tf32"), (2, "float32")])
def test_either_way_to_allow_tf32_is_understood_and_stays(place: int, expected: str) -> None:
    """Where the newer one was used, torch raises as soon as the older one is asked for."""
    torch.manual_seed(0)
    x, embeddings, people, head = torch.randn(12, 16), torch.randn(40, 16), torch.arange(40) // 4, make()
    state = {name: value.clone() for name, value in head.to("cpu").state_dict().items()}
    usual, counted = step(head, x), all_pairs_tar(embeddings, people, [0.1]).points
    HOLDERS[place].fp32_precision = "tf32"
    kept = [holder.fp32_precision for holder in HOLDERS]
    assert resolve_precision("auto", CUDA, "32-true") == expected
    head.load_state_dict(state)
    for one, other in zip(usual, step(head, x), strict=True):
        assert torch.equal(one, other)
    assert all_pairs_tar(embeddings, people, [0.1]).points == counted
    assert [holder.fp32_precision for holder in HOLDERS] == kept
    HOLDERS[place].fp32_precision = "none"
    assert [holder.fp32_precision for holder in HOLDERS] == ["none"] * 3  # what was inherited is not pinned
