"""metrics.csv after a crash: what is whole is read, whatever stands beside it, and a resumed run writes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_pfc.callbacks.csv_log import CSVLogger, read_metrics

HEAD, ROWS = b"step,loss\n", [b"0,0.5\n", b"1,0.25\n", b"2,0.125\n"]


@pytest.mark.parametrize(
    ("content", "steps"),
    [
        (b"", []),
        (b"\n", []),
        (b"step,lo", []),
        (HEAD, []),
        (b"\0" * 100, []),
        (HEAD + b"".join(ROWS) + b"3,0.0", [0, 1, 2]),  # half of 0.0625
        (HEAD + b"".join(ROWS) + b"\0" * 50, [0, 1, 2]),
        (HEAD + ROWS[0] + b"1,0.2" + ROWS[1] + ROWS[2], [0, 2]),
        (HEAD + ROWS[0] + b'1,"0.2' + ROWS[1] + ROWS[2], [0, 2]),  # a quotation mark goes on to the next, in CSV
        (HEAD + ROWS[0] + b'"\n' + ROWS[1] + ROWS[2], [0, 1, 2]),
        (HEAD + ROWS[0] + b"\0\0\0\n" + ROWS[1] + ROWS[2], [0, 1, 2]),
        (HEAD + ROWS[0] + b"\xff\xfe,\xc3\n" + ROWS[1] + ROWS[2], [0, 1, 2]),
        (HEAD + ROWS[0] + b"7" * 200_000 + b"\n" + ROWS[1] + ROWS[2], [0, 1, 2]),  # beyond the csv module's limit
        (HEAD + ROWS[0] + b"\n" + ROWS[1] + ROWS[2], [0, 1, 2]),
    ],
)
def test_whole_rows_are_read_and_the_log_goes_on(tmp_path: Path, content: bytes, steps: list[int]) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    assert [row["step"] for row in read_metrics(path)] == steps
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"loss": 0.75}, 9)
    logger.finalize("success")
    rows = read_metrics(path)
    assert rows == [{"step": step, "loss": 0.5 ** (step + 1)} for step in steps] + [{"step": 9, "loss": 0.75}]


def test_a_run_that_goes_on_behind_an_epochs_last_batch_keeps_the_row_of_that_batch(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,loss,val\n6,0.5,\n7,0.25,\n7,,0.9\n8,0.125,\n")
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"val": 0.75}, 7)
    logger.finalize("success")
    assert read_metrics(path) == [{"step": 6, "loss": 0.5}, {"step": 7, "loss": 0.25}, {"step": 7, "val": 0.75}]


def test_what_is_logged_again_under_one_step_stands_once(tmp_path: Path) -> None:
    """The rate comes before the loss, and both in rows of their own."""
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,loss,lr,time\n6,0.5,,1\n7,,0.1,\n7,0.25,,2\n8,0.125,,3\n")
    logger = CSVLogger(tmp_path)
    for row in ({"lr": 0.2}, {"loss": 0.75}):
        logger.log_metrics(row, 7)
    logger.log_metrics({"loss": 1.0}, 8)
    logger.finalize("success")
    found = read_metrics(path)
    assert [(row["step"], row["loss"]) for row in found if "loss" in row] == [(6, 0.5), (7, 0.75), (8, 1.0)]
    assert [(row["step"], row["lr"]) for row in found if "lr" in row] == [(7, 0.2)]


def test_a_row_of_the_last_batch_keeps_what_its_validation_does_not_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,loss,speed,val\n6,0.5,1,\n7,0.25,2,\n7,,,0.9\n")
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"val": 0.75, "speed": 3.0}, 7)
    logger.finalize("success")
    assert read_metrics(path) == [
        {"step": 6, "loss": 0.5, "speed": 1.0},
        {"step": 7, "loss": 0.25},
        {"step": 7, "speed": 3.0, "val": 0.75},
    ]


def test_what_this_start_logs_twice_stands_twice(tmp_path: Path) -> None:
    """A second fit of one logger begins at the first step again; without a step every row is of step 0."""
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,loss,val\n0,0.5,\n0,,0.9\n")
    logger = CSVLogger(tmp_path, flush_every=2)
    for step in (0, 1, 2, 0, 1):
        logger.log_metrics({"loss": 1.0 + step}, step)
    logger.log_metrics({"loss": 7.0})
    logger.finalize("success")
    found = [(row["step"], row["loss"]) for row in read_metrics(path) if "loss" in row]
    assert found == [(0, 1.0), (1, 2.0), (2, 3.0), (0, 1.0), (1, 2.0), (0, 7.0)]
    assert [row["val"] for row in read_metrics(path) if "val" in row] == [0.9]


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\u2028b", "a\x1cb", "a\x0cb", "a\x85b", 'val/"x", 1e-3'])
def test_rows_stay_whatever_the_name_of_a_metric_holds(tmp_path: Path, name: str) -> None:
    for number in range(2):
        logger = CSVLogger(tmp_path)
        logger.log_metrics({name: 0.5}, number)
        logger.finalize("success")
    name = name.replace("\n", " ").replace("\r", " ")
    assert read_metrics(tmp_path / "metrics.csv") == [{"step": 0, name: 0.5}, {"step": 1, name: 0.5}]
