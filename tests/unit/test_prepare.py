"""What the labels decide begins when they are known: rows are on their way before the backbone is done."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_pfc import PartialFC, PartialFCModule
from lightning_pfc.buffers import host_rows, staged_rows
from lightning_pfc.buffers.staged_rows import StagedRows
from lightning_pfc.data.mixing import MixedBatch
from lightning_pfc.distributed import Comm
from lightning_pfc.heads.sampling import PositivesOnly, Retrieval, Uniform
from lightning_pfc.heads.softmax import class_chunks
from lightning_pfc.optim import SparseSGD
from tests.ranks import RankPool
from tests.unit.test_fake_cuda import CUDA, NoWaiting
from tests.unit.test_head_host_rows import split_head

DIM, CLASSES, BATCH = 16, 120, 11


def pretend_elsewhere(patch: pytest.MonkeyPatch) -> None:
    for module in (host_rows, class_chunks):
        patch.setattr(module, "is_offloaded", lambda table, device: True)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the path of centers that are on another device than the head."""
    pretend_elsewhere(monkeypatch)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens, in order: rows gathered ahead, and rows read when they are needed."""
    seen: list[str] = []
    gather, read = StagedRows._gather, class_chunks.stage_pinned

    def gathered(self: StagedRows) -> Any:
        seen.append("gathered ahead")
        return gather(self)

    def read_now(table: Tensor, rows: Any) -> Tensor:
        seen.append("read when needed")
        return read(table, rows)

    monkeypatch.setattr(StagedRows, "_gather", gathered)
    monkeypatch.setattr(class_chunks, "stage_pinned", read_now)
    return seen


def make(**options: Any) -> PartialFC:
    given = {"loss": "arcface", "sample_rate": 0.3, "chunk_size": 17, "rows_on": "host", **options}
    return PartialFC(embedding_dim=DIM, num_classes=CLASSES, **given)


def batch(number: int, rows: int = BATCH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(rows, DIM, generator=generator), torch.randint(CLASSES, (rows,), generator=generator)


def test_the_gather_begins_when_the_labels_are_known(elsewhere: None, events: list[str]) -> None:
    """The backbone does not end before the rows were fetched, which would hang if the forward asked for them."""
    head, backbone = make().to("cpu"), nn.Linear(DIM, DIM)
    fetched = threading.Event()
    gather = StagedRows._gather
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StagedRows, "_gather", lambda self: (gather(self), fetched.set())[0])  # type: ignore[func-returns-value]
        x, labels = batch(0)
        head.prepare(labels)
        embeddings = backbone(x)
        assert fetched.wait(30)
        events.append("backbone done")
        head(embeddings, labels).backward()
    assert events == ["gathered ahead", "backbone done"]


def test_the_module_of_this_package_prepares_its_batches(elsewhere: None, events: list[str]) -> None:
    module = PartialFCModule(
        backbone=nn.Flatten(), num_classes=CLASSES, embedding_dim=DIM, loss="arcface",
        head={"sample_rate": 0.3, "rows_on": "host"},
    )  # fmt: skip
    module.make_neck = None  # type: ignore[method-assign]
    x, labels = batch(0)
    head = module.head.to("cpu")
    module.on_train_batch_start([x, labels], 0)
    assert head._prepared.given == (labels, None)
    head(x, labels)
    other = labels.flip(0)
    mixed = MixedBatch(x, labels, other, torch.tensor(0.3))
    module.on_train_batch_start(mixed, 1)
    head(x, labels, other, 0.3)
    assert events.count("gathered ahead") == 2
    assert "read when needed" not in events


class ByName(PartialFCModule):
    """Its batches are dicts, and it says nothing of where the labels are."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.head(self(batch["images"]), batch["labels"])
        return loss


class ByNameAndSaid(ByName):
    def head_labels(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        return batch["labels"], None


@pytest.mark.parametrize("cls", [ByName, ByNameAndSaid])
@pytest.mark.parametrize("kept", ["rows_on", "row_folder"])
def test_a_batch_may_be_a_dict(
    elsewhere: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cls: type[ByName], kept: str
) -> None:
    where = {"rows_on": "host"} if kept == "rows_on" else {"row_folder": tmp_path / "rows"}
    module = cls(
        backbone=nn.Flatten(), num_classes=CLASSES, embedding_dim=DIM, loss="arcface", neck="none",
        input_size=(1, 1, DIM), head={"sample_rate": 0.3, **where}, optimizer={"name": "sgd", "lr": 0.1},
    )  # fmt: skip
    asked: list[Tensor] = []
    prepare = PartialFC.prepare
    monkeypatch.setattr(
        PartialFC,
        "prepare",
        lambda self, labels, other=None: (asked.append(labels), prepare(self, labels, other))[1],  # type: ignore[func-returns-value]
    )
    x, labels = batch(0)
    data = [{"images": picture.reshape(1, 1, DIM), "labels": label} for picture, label in zip(x, labels, strict=True)]
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, batch_size=BATCH))  # type: ignore[arg-type]
    assert int(module.head.step) == 1
    assert [found.tolist() for found in asked] == ([labels.tolist()] if cls is ByNameAndSaid else [])


@pytest.mark.parametrize("given", [torch.zeros(2, 3), {"labels": 1}, [torch.zeros(2, 3)], (torch.zeros(2), "a"), None])
def test_labels_that_are_not_known_are_not_asked_for(given: Any) -> None:
    module = PartialFCModule(backbone=nn.Flatten(), num_classes=9, embedding_dim=DIM, input_size=(1, 1, DIM))
    assert module.head_labels(given) is None


def run(comm: Comm | None, prepares: bool, way: str, **options: Any) -> list[Tensor]:
    """Losses, gradients and centers of a few steps."""
    rank, world = (0, 1) if comm is None else (comm.rank, comm.world_size)
    head = make(comm=comm, **options).to("cpu")
    in_backward = way == "in the backward"
    optimizer = SparseSGD(head.parameters(), lr=0.5, momentum=0.9, update_in_backward=in_backward)
    out = []
    for number in range(4):
        for part in range(2 if way == "accumulated" else 1):
            x, labels = (tensor[rank::world] for tensor in batch(10 * number + part))
            x.requires_grad_()
            if prepares:
                if way == "thrown away":
                    head.prepare(labels.flip(0))
                    if number % 2:
                        head.prepare(labels)
                elif way == "written over":
                    head.prepare(labels)
                    labels.copy_(labels.flip(0))
                else:
                    head.prepare(labels)
            if not prepares and way == "written over":
                labels.copy_(labels.flip(0))
            again = way == "computed again"
            loss = checkpoint(head, x, labels, use_reentrant=False) if again else head(x, labels)
            loss.backward()
            assert x.grad is not None
            out += [loss.detach(), x.grad]
        optimizer.step()
        optimizer.zero_grad()
    return [*out, head.weight.detach(), head.step]


WAYS = ("in turn", "accumulated", "in the backward", "thrown away", "written over", "computed again")
KINDS: list[dict[str, Any]] = [
    {},
    {"sampler": Uniform(correction=True)},
    {"sampler": PositivesOnly()},
    {"loss": "cosface"},
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_no_number_changes(elsewhere: None, way: str, options: dict[str, Any]) -> None:
    for one, other in zip(*(run(None, prepares, way, **options) for prepares in (False, True)), strict=True):
        assert torch.equal(one, other)


def on_ranks(rank: int, world_size: int) -> int:
    with pytest.MonkeyPatch.context() as patch:
        pretend_elsewhere(patch)
        comm, counted = Comm.from_group(), 0
        for way in WAYS:
            for one, other in zip(*(run(comm, prepares, way) for prepares in (False, True)), strict=True):
                assert torch.equal(one, other), way
                counted += 1
        return counted


@pytest.mark.parametrize("world_size", [2, 3])
def test_no_number_changes_on_ranks(ranks: RankPool, world_size: int) -> None:
    assert min(ranks.run(world_size, on_ranks)) > 50


def prepare_and_count(rank: int, world_size: int) -> tuple[list[str], str, int]:
    """Messages of a step with and without; what a rank with bad labels does to the others; one that does not call."""
    comm = Comm.from_group()
    head, said = make(comm=comm, rows_on="device").to("cpu"), []
    exchange = comm.agreement.exchange
    x, labels = (tensor[rank::world_size] for tensor in batch(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(comm.agreement), "exchange", lambda self, tag, *a: (said.append(tag), exchange(tag, *a))[1])  # type: ignore[func-returns-value]
        head.prepare(labels)
        head(x, labels)
        said.append("|")
        head(x, labels)
    bad = torch.full_like(labels, CLASSES) if rank == 0 else labels
    head.prepare(bad)
    assert head._prepared is None
    try:
        head(x, bad)
    except ValueError as error:
        text = str(error)
    dist.barrier()
    return said, text, int(head.step)


def test_what_is_said_and_bad_labels(ranks: RankPool) -> None:
    for said, text, step in ranks.run(2, prepare_and_count):
        assert said == ["PartialFC.prepare", "PartialFC.forward", "|", "PartialFC.forward"]
        assert "outside [0, num_classes=120)" in text
        assert step == 2


def one_alone(rank: int, world_size: int) -> str:
    head = make(comm=Comm.from_group(), rows_on="device").to("cpu")
    x, labels = (tensor[rank::world_size] for tensor in batch(0))
    try:
        if rank == 0:
            head.prepare(labels)
        head(x, labels)
    except RuntimeError as error:
        return str(error)
    return ""


def test_a_rank_that_does_not_prepare_is_named(ranks: RankPool) -> None:
    for text in ranks.run(2, one_alone):
        assert "rank 0 is at 'PartialFC.prepare'; rank 1 is at 'PartialFC.forward'" in text


def test_nothing_is_kept_where_nothing_can_be_known(elsewhere: None) -> None:
    _, labels = batch(0)
    for head in (make(sample_rate=1.0), make(sampler=Retrieval(refresh=2, query="target")), make().eval()):
        head.to("cpu").prepare(labels)
        assert head._prepared is None
    head = make().to("cpu")
    for wrong in (labels.int(), labels + CLASSES, [1, 2], torch.zeros(2, 2, 2, dtype=torch.int64)):
        head.prepare(wrong)  # type: ignore[arg-type]
        assert head._prepared is None
    head.prepare(labels)
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert other._prepared is None
    head.load_state_dict(head.state_dict())  # another step, for all that is known
    assert head._take_prepared(labels, None) is None


def test_several_labels_a_row(elsewhere: None, events: list[str]) -> None:
    x, labels = batch(0)
    several = torch.stack([labels, labels.flip(0)], 1)
    several[4:, 1] = -1
    found = []
    for prepares in (False, True):
        head = make(loss="cosface").to("cpu")
        if prepares:
            events.clear()
            head.prepare(several)
        found.append(head(x, several))
    assert torch.equal(*found)
    assert events == ["gathered ahead"]


def test_rows_in_files_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = make(row_folder=tmp_path, rows_on="device").to("cpu")
    x, labels = batch(0)
    asked: list[Tensor] = []
    monkeypatch.setattr("lightning_pfc.storage.row_files.RowFiles.prefetch", lambda self, rows: asked.append(rows))
    head.prepare(labels)
    drawn = asked[0]
    assert isinstance(drawn, Tensor)
    assert set(labels.tolist()) <= set(drawn.tolist())
    head(x, labels)


def _told(started: list[torch.device], rows: Tensor) -> Tensor:
    started.append(rows.device)
    return rows.to("cpu", non_blocking=True)


class _AtOnce:
    """In place of the thread: tensors without storage are of one thread only."""

    def submit(self, work: Callable[[], Tensor]) -> Future[Tensor]:
        found: Future[Tensor] = Future()
        found.set_result(work())
        return found


def test_on_a_gpu_preparing_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors: centers on the host, all else on a GPU. Nor does the forward, once the rows were fetched."""
    started: list[torch.device] = []
    monkeypatch.setattr(staged_rows, "_on_its_way", lambda rows: (_told(started, rows), None))
    monkeypatch.setattr(staged_rows, "_threads", [_AtOnce()])
    with FakeTensorMode(allow_non_fake_inputs=False), torch.no_grad():
        head = split_head(loss="arcface")
        labels = torch.empty(24, dtype=torch.int64, device=CUDA)
        assert head.reads_from_host
        with NoWaiting():
            head.prepare(labels)
        assert started == [CUDA]
        staged = head._prepared.sampled.staged
        with NoWaiting():
            value = head(torch.empty(24, DIM, device=CUDA), labels)
        assert value.device == CUDA
        unprepared = split_head(loss="arcface")
        with NoWaiting(), pytest.raises(AssertionError, match="the host waits"):
            unprepared(torch.empty(24, DIM, device=CUDA), labels)
        assert staged.index.device.type == "cpu"
