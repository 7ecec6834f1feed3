"""Rows of the host are copied beside the backbone's forward, and nothing reads them before they have arrived."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_pfc import PartialFC
from lightning_pfc.buffers import side_stream, staged_rows
from lightning_pfc.heads.softmax import class_chunks, own_targets
from lightning_pfc.optim import SparseSGD
from tests.unit.pretended_gpu import DEVICE, Elsewhere
from tests.unit.stream_model import ReadTooEarlyError, StreamModel

DIM, CLASSES, BATCH = 16, 120, 11


class AtOnce:
    """In place of the thread, which has no part in this: what a model sees is of one thread."""

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        found: Future[Any] = Future()
        found.set_result(work())
        return found


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[StreamModel]:
    monkeypatch.setattr(staged_rows, "_threads", [AtOnce()])
    monkeypatch.setattr(staged_rows, "PIECE_BYTES", 10 * 4 * DIM)  # several pieces
    with StreamModel() as model:
        monkeypatch.setattr(side_stream, "streams_of", lambda device: model)
        yield model


def make(**options: Any) -> PartialFC:
    """Centers on the host, all else on the model's GPU."""
    given = {"loss": "arcface", "sample_rate": 0.3, "chunk_size": 17, "rows_on": "host", "init_std": 1.0, **options}
    head = PartialFC(embedding_dim=DIM, num_classes=CLASSES, **given).to("cpu")
    for name, buffer in list(head._buffers.items()):
        if buffer is not None:
            head._buffers[name] = Elsewhere(buffer.clone())
    head.__dict__["_ensure_storage"] = lambda: None
    return head


def backbone_of() -> nn.Linear:
    backbone = nn.Linear(DIM, DIM)
    weight = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(1))
    backbone.weight = nn.Parameter(Elsewhere(weight))
    backbone.bias = nn.Parameter(Elsewhere(torch.zeros(DIM)))
    return backbone


def batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    x, labels = torch.randn(BATCH, DIM, generator=generator), torch.randint(CLASSES, (BATCH,), generator=generator)
    return Elsewhere(x), Elsewhere(labels)


def run(model: StreamModel, prepares: bool, in_backward: bool = False, **options: Any) -> list[Tensor]:
    """Losses, gradients and centers of a few steps."""
    head, backbone = make(**options), backbone_of()
    optimizer = SparseSGD(head.parameters(), lr=0.5, momentum=0.9, update_in_backward=in_backward)
    out = []
    for number in range(3):
        x, labels = batch(number)
        if prepares:
            head.prepare(labels)
        model.log.append("backbone begins")
        embeddings = backbone(x)
        model.log.append("backbone ends")
        loss = head(embeddings, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert isinstance(backbone.weight.grad, Elsewhere)
        assert isinstance(loss, Elsewhere)
        out += [loss.inner.clone(), backbone.weight.grad.inner.clone()]
        backbone.weight.grad = None
    return [*out, head.weight.detach()]


KINDS: list[dict[str, Any]] = [
    {"in_backward": True, "memory_budget": 0},
    {}, {"loss": "cosface"}, {"in_backward": True}, {"loss": "curricularface"}, {"loss": {"name": "vpl"}},
    {"dtype": "bfloat16"}, {"memory_budget": 0}, {"precision": "bfloat16"}, {"loss": "subcenter_arcface"},
]  # fmt: skip


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_no_number_changes_and_nothing_is_read_too_early(model: StreamModel, options: dict[str, Any]) -> None:
    alone = run(model, False, **options)
    assert "copy" not in model.log
    beside = run(model, True, **options)
    for one, other in zip(alone, beside, strict=True):
        assert torch.equal(one, other)
    assert model.log.count("copy") >= 3 * 3
    gc.collect()
    assert model.freed == 3, "the rows of each step were let go of"
    assert model.faults == []


def test_copies_are_given_before_the_backbone_and_waited_for_after_it(model: StreamModel) -> None:
    """In order of what the host does: the GPU may make every copy while it computes the backbone's forward."""
    run(model, True)
    step = model.log[: model.log.index("backbone ends")]
    begun = step.index("backbone begins")
    assert step.count("copy") == step[:begun].count("copy") >= 3
    assert "compute" in step[begun:]
    assert "waits" not in step
    assert "waits" in model.log


@pytest.mark.parametrize("in_backward", [False, True])
def test_nothing_goes_over_the_bus_twice(
    model: StreamModel, monkeypatch: pytest.MonkeyPatch, in_backward: bool
) -> None:
    def late(*args: Any) -> Tensor:
        raise AssertionError("read when it was needed")

    for module in (class_chunks, own_targets):
        monkeypatch.setattr(module, "stage_pinned", late)
    run(model, True, in_backward)
    with pytest.raises(AssertionError, match="read when it was needed"):
        run(model, False)


def test_more_rows_than_go_ahead_stay_on_the_host(model: StreamModel, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = run(model, False)
    monkeypatch.setattr(staged_rows, "AHEAD_BYTES", 4 * DIM * 20)
    for one, other in zip(alone, run(model, True), strict=True):
        assert torch.equal(one, other)
    assert "copy" not in model.log


def test_rows_that_change_meanwhile_are_read_again(model: StreamModel) -> None:
    found = []
    for prepares in (False, True):
        head, (x, labels) = make(), batch(0)
        if prepares:
            head.prepare(labels)
        with torch.no_grad():
            head.weight.mul_(2.0)
            head.weight[::3] *= -1
        found.append(head(x, labels).inner)
    assert torch.equal(*found)


# -- the model sees what it is there for


def test_a_read_without_a_wait_is_seen(model: StreamModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StreamModel, "follow", lambda self, mark, tensor: None)
    with pytest.raises(ReadTooEarlyError, match="has waited for 0"):
        run(model, True)


def test_a_wait_for_too_little_is_seen(model: StreamModel, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = StreamModel.mark
    monkeypatch.setattr(StreamModel, "mark", lambda self: mark(self) - 1)  # before the last piece
    with pytest.raises(ReadTooEarlyError):
        run(model, True)


def test_memory_that_is_not_kept_for_its_reader_is_seen(model: StreamModel, monkeypatch: pytest.MonkeyPatch) -> None:
    follow = StreamModel.follow

    def without_record_stream(self: StreamModel, mark: int, tensor: Tensor) -> None:
        follow(self, mark, tensor)
        self._memory_of(tensor).is_kept = False  # type: ignore[union-attr]

    monkeypatch.setattr(StreamModel, "follow", without_record_stream)
    run(model, True)
    gc.collect()
    assert model.faults == ["let go of while the stream that computes may still read it"] * 3


def test_work_on_the_stream_of_copies_is_seen(model: StreamModel) -> None:
    rows = Elsewhere(torch.ones(3))
    with pytest.raises(AssertionError, match="on the stream of copies"), model.beside():
        rows.mul_(2)


def test_a_piece_that_is_written_over_is_seen(model: StreamModel) -> None:
    """Copies are late: what they copy from has to stay as it was."""
    piece = torch.ones(3)
    with model.beside():
        out = torch.empty(3, device=DEVICE)
        out.copy_(piece, non_blocking=True)
        mark = model.mark()
    piece.fill_(2.0)
    model.follow(mark, out)
    assert isinstance(out, Elsewhere)
    assert out.inner.tolist() == [2.0] * 3


class Recorded:
    """Torch's stream and event, as far as they are used; what is done with them, in order."""

    def __init__(self, said: list[str]) -> None:
        self.said = said

    def record_event(self) -> str:
        self.said.append("record")
        return "event"

    def wait_event(self, event: str) -> None:
        self.said.append(f"wait {event}")


def test_what_is_asked_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls themselves, on a machine without a GPU."""
    said: list[str] = []
    device = torch.device("cuda", 3)
    monkeypatch.setattr(side_stream, "_known", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda on: (said.append(f"stream {on}"), Recorded(said))[1])  # type: ignore[func-returns-value]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda on: (said.append(f"current {on}"), Recorded(said))[1])  # type: ignore[func-returns-value]
    tensor: Any = type("T", (), {"record_stream": lambda self, stream: said.append("kept")})()
    streams = side_stream.streams_of(device)
    assert side_stream.streams_of(device) is streams
    streams.follow(streams.mark(), tensor)
    assert said == ["stream cuda:3", "record", "current cuda:3", "wait event", "kept"]
