"""The plan: against what is measured, against what was published, and against itself."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_pfc.commands import plan
from lightning_pfc.matmul.in_precision import has_fast_bfloat16
from lightning_pfc.planning import MACHINES, Setup, advise, head_memory, head_seconds, host_memory, largest_classes
from lightning_pfc.planning.advice import fits, pays_from, step_seconds
from lightning_pfc.planning.published import insightface_table
from lightning_pfc.planning.traffic import head_traffic, total

V100 = MACHINES["v100-32"]
MEASURED = [
    {"classes": 150_000, "dim": 128, "batch": 64},
    {"classes": 150_000, "dim": 128, "batch": 64, "update_in_backward": True, "memory_budget": 0},
    {"classes": 400_000, "dim": 128, "batch": 64, "rate": 0.1},
    {"classes": 400_000, "dim": 256, "batch": 32, "rate": 0.3, "dtype": "bfloat16", "optimizer": "adagrad"},
    {"classes": 200_000, "dim": 128, "batch": 16, "rate": 0.5, "optimizer": "adamw", "state_dtype": "bfloat16"},
    {"classes": 200_000, "dim": 128, "batch": 64, "optimizer": "adamw", "state_dtype": "int8"},
    {"classes": 100_000, "dim": 128, "batch": 256, "optimizer": "torch-sgd"},
    {"classes": 300_000, "dim": 128, "batch": 64, "rate": 0.2, "optimizer": "torch-sgd"},
    {"classes": 20_000, "dim": 512, "batch": 128},
    {"classes": 20_000, "dim": 512, "batch": 128, "rate": 0.1},
]


IN_HALF = [{"classes": 150_000, "dim": 128, "batch": 128, "precision": "bfloat16"}]
ON_LINUX = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is measured through /proc of Linux"
)


@ON_LINUX
def test_memory_is_within_15_percent_of_what_is_measured():
    assert_planned(MEASURED)


@ON_LINUX
@pytest.mark.skipif(
    not has_fast_bfloat16(),
    reason="without bfloat16 instructions the library multiplies copies in float32, more or fewer from run to run",
)
def test_memory_of_bfloat16_products_is_within_15_percent_of_what_is_measured():
    # 316 to 345 MB in 23 processes: the library's blocks lie where the system has room, on huge pages or not
    assert_planned(IN_HALF, processes=5)


def assert_planned(cases, processes=1):
    """The plan is within 15 % of the median of so many processes."""
    setups = [{**one, "device": "cpu"} for one in cases]
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.unit.plan_measure"]
    done = subprocess.run(
        command, input=json.dumps(setups * processes), capture_output=True, text=True, cwd=root, check=False
    )
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout.splitlines()[-1])
    measured = [statistics.median(runs[i :: len(setups)]) for i in range(len(setups))]
    planned = [head_memory(Setup(**one)).peak for one in setups]
    found = {str(s): f"{p / m:.3f} of {m / 1e6:.0f} MB" for s, p, m in zip(cases, planned, measured, strict=True)}
    assert all(abs(p / m - 1) < 0.15 for p, m in zip(planned, measured, strict=True)), json.dumps(found, indent=1)


def test_the_published_table_is_understood():
    """Three constants give all 19 published figures to 6 %, and this head needs less than each of them."""
    rows = insightface_table()
    assert len(rows) == 19
    for row in rows:
        assert row.fitted == pytest.approx(row.published, rel=0.06)
        assert row.ours < row.published


def test_the_peak_is_that_of_one_phase():
    memory = head_memory(Setup(classes=1_000_000, rate=0.1))
    assert memory.peak == sum(term.bytes for term in memory.at_peak)
    assert memory.peak < sum(term.bytes for term in memory.terms)
    assert memory.peak == max(
        sum(t.bytes for t in memory.terms if phase in t.phases) for phase in ("draw", "forward", "backward", "step")
    )


def test_what_options_save():
    base = Setup(classes=4_000_000, rate=0.1)
    peak = head_memory(base).peak
    state = 4 * 4_000_000 * 512
    assert peak - head_memory(base.but(optimizer="adagrad")).peak == pytest.approx(state, rel=0.02)
    assert peak - head_memory(base.but(state_dtype="int8")).peak == pytest.approx(0.75 * state, rel=0.01)
    assert head_memory(base.but(optimizer="adamw")).peak - peak == pytest.approx(state, rel=0.01)
    assert head_memory(base.but(optimizer="torch-sgd")).peak - peak > 1.7 * state
    assert head_memory(base.but(update_in_backward=True)).peak < peak
    halved = head_memory(base.but(ranks=2)).peak
    assert halved < 0.6 * peak


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adagrad", "torch-sgd"])
def test_centers_on_the_host_take_its_memory_and_the_bus(optimizer):
    """What leaves the device is there on the host, byte for byte, and the rows that are fetched ahead beside it."""
    here = Setup(classes=10_000_000, rate=0.01, batch=1024, optimizer=optimizer)
    there = here.but(rows_on="host")
    device, host, whole = head_memory(there), host_memory(there), head_memory(here)
    fetched = [
        {term.name: term.bytes for term in terms}.pop("rows fetched ahead") for terms in (device.terms, host.terms)
    ]
    assert fetched == [here.sampled_rows * 512 * 4, 64 << 20], "two pieces are on the way"
    many = there.but(rate=0.1)  # more than go ahead
    assert "rows fetched ahead" not in {term.name for term in head_memory(many).terms}
    assert {term.name: term.bytes for term in host_memory(many).terms}["rows fetched ahead"] == many.sampled_rows * 2048
    both = {term.name: term.bytes for term in (*device.terms, *host.terms) if term.name != "rows fetched ahead"}
    assert both == {term.name: term.bytes for term in whole.terms}
    assert {term.name for term in host.terms} >= {"centers", "optimizer state", "gradient of the centers"}
    assert device.peak < 2e9 < 20e9 < host.peak
    moved = head_seconds(there, MACHINES["h200"])["rows over the bus"]
    assert moved == pytest.approx(there.sampled_rows * 512 * 8 / MACHINES["h200"].bus)
    moved = head_seconds(many, MACHINES["h200"])["rows over the bus"]
    assert moved == pytest.approx(many.sampled_rows * 512 * 12 / MACHINES["h200"].bus), "forward, backward, gradients"
    assert head_seconds(here, MACHINES["h200"])["rows over the bus"] == 0
    chip, size = MACHINES["h200"], there.sampled_rows * 512
    seconds, above = head_seconds(there, chip), head_seconds(here, chip)
    assert seconds["rows gathered on the host"] == pytest.approx(8 * size / chip.host_bandwidth)
    # the optimizer is where the rows are, and takes there what it takes on a CPU
    read = above["optimizer"] * chip.bandwidth
    read = read if there.is_dense else max(read, 24 * 4 * size)
    assert seconds["optimizer"] == pytest.approx(read / chip.host_bandwidth)
    assert seconds["optimizer"] > 50 * above["optimizer"]
    assert seconds["finding rows"] > 0 == above["finding rows"] == above["rows gathered on the host"]
    for same in ("matrix products", "scores", "centers", "drawing"):
        assert seconds[same] == above[same]
    assert head_seconds(there.but(rate=1.0), chip)["rows gathered on the host"] == 0, (
        "all rows are taken where they are"
    )
    assert host_memory(here).terms == host_memory(there.but(device="cpu")).terms == []
    assert head_memory(there.but(device="cpu")).peak == head_memory(here.but(device="cpu")).peak


def test_a_chip_has_the_bus_and_the_host_of_its_time():
    """Three quarters of PCIe 3, 4 or 5 x16; the eighth part of two processors' memory, of which 80 %."""
    buses = {name: machine.bus / 0.75e9 for name, machine in MACHINES.items()}
    assert buses["v100-32"] == buses["rtx2080ti"] == 15.75
    assert buses["a100-80"] == buses["rtx4090"] == buses["l40s"] == 31.5
    assert buses["h100-80"] == buses["h200"] == buses["b200"] == 63
    hosts = {name: machine.host_bandwidth / 0.8e9 for name, machine in MACHINES.items()}
    assert hosts["a100-80"] == pytest.approx(2 * 204.8 / 8)
    assert hosts["h200"] == pytest.approx(2 * 307.2 / 8)
    assert hosts["v100-32"] < hosts["a100-80"] < hosts["h200"] < hosts["b200"]
    assert all(machine.host_bandwidth < machine.bandwidth / 5 for machine in MACHINES.values())


def test_the_command_knows_the_host(capsys):
    words = ["--classes", "3e8", "--rate", "0.001", "--optimizer", "adagrad", "--device", "h200"]
    assert plan.main(words) == 1
    capsys.readouterr()
    assert plan.main([*words, "--rows-on", "host"]) == 0
    assert "host, at its peak" in capsys.readouterr().out
    assert plan.main([*words, "--rows-on", "host", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory"]["host"]["terms"]["centers"] == 300_000_000 * 512 * 4


def test_adamw_knows_when_a_row_moved_last_and_the_dense_one_has_no_need_to():
    setup = Setup(classes=1_000_003, ranks=2, rate=0.1, optimizer="adamw")
    named = {term.name: term.bytes for term in head_memory(setup).at_peak}
    assert named["last step of a row"] == 4 * 500_002
    assert named["optimizer state"] == 2 * 4 * 500_002 * 512
    for other in ("sgd", "adagrad", "torch-adamw"):
        assert "last step of a row" not in {term.name for term in head_memory(setup.but(optimizer=other)).terms}


def test_traffic_does_not_depend_on_the_classes_unless_they_are_replicated():
    few, many = Setup(classes=10_000, ranks=8, rate=0.1), Setup(classes=10_000_000, ranks=8)
    assert total(head_traffic(few)) == total(head_traffic(many))
    assert total(head_traffic(many.but(group_size=4))) > 1000 * total(head_traffic(few.but(group_size=4, rate=0.01)))
    assert head_traffic(Setup(classes=10)) == []


@pytest.mark.parametrize("rate", [1.0, 0.1])
@pytest.mark.parametrize("world_size", [1, 8])
def test_the_largest_number_of_classes_fits_and_one_more_does_not(rate, world_size):
    setup = Setup(classes=1000, ranks=world_size, rate=rate)
    most = largest_classes(setup, V100, 4.6e9)
    assert fits(setup.but(classes=most), V100, 4.6e9)
    assert not fits(setup.but(classes=most + 10 * world_size), V100, 4.6e9)


def test_sampling_is_advised_against_for_few_classes_and_chosen_for_many():
    few = advise(Setup(classes=20_000, ranks=8), V100, 6.3, 4.6e9)
    assert few.rate == 1
    assert any("does not pay" in reason for reason in few.reasons)
    many = advise(Setup(classes=20_000_000, ranks=8), V100, 6.3, 4.6e9)
    assert many.rate is not None
    assert many.rate < 1
    assert not any("does not pay" in reason for reason in many.reasons)
    assert few.pays_from == many.pays_from


def test_where_sampling_begins_to_pay():
    setup = Setup(classes=1000, ranks=8)
    edge = pays_from(setup, V100, 6.3)

    def saved(classes: int) -> float:
        whole = step_seconds(setup.but(classes=classes), V100, 6.3)
        return 1 - step_seconds(setup.but(classes=classes, rate=0.1), V100, 6.3) / whole

    assert saved(edge) >= 0.05
    assert saved(int(0.98 * edge)) < 0.05


def test_rows_that_are_drawn_on_a_cpu_cost_more_than_their_bytes():
    """Processor time of one thread as it was seen, within a third; the machine's speeds are those of then."""
    machine = replace(V100, flops=99.4e9, bandwidth=22.1e9)
    seen = {
        (20_000, 512, 128, 1.0): 0.1228, (20_000, 512, 128, 0.3): 0.0560, (20_000, 512, 128, 0.1): 0.0253,
        (100_000, 512, 128, 1.0): 0.5738, (100_000, 512, 128, 0.1): 0.1001, (200_000, 128, 128, 0.5): 0.2386,
        (300_000, 256, 64, 0.1): 0.1200, (1_000_000, 128, 128, 0.1): 0.2686,
    }  # fmt: skip
    for (classes, dim, batch, rate), seconds in seen.items():
        setup = Setup(classes=classes, dim=dim, batch=batch, rate=rate, device="cpu")
        assert sum(head_seconds(setup, machine).values()) == pytest.approx(seconds, rel=1 / 3), setup


def test_nothing_is_chosen_where_nothing_fits():
    advice = advise(Setup(classes=2_000_000_000), V100, 6.3, 4.6e9)
    assert not advice.fits
    assert advice.rate is None
    assert any("more ranks" in reason for reason in advice.reasons)


def test_time_grows_with_what_is_sampled_not_with_what_is_there():
    a = sum(head_seconds(Setup(classes=1_000_000, rate=0.1), V100).values())
    b = sum(head_seconds(Setup(classes=10_000_000, rate=0.01), V100).values())
    assert b == pytest.approx(a, rel=0.1)
    dense = sum(head_seconds(Setup(classes=10_000_000, rate=0.01, optimizer="torch-sgd"), V100).values())
    assert dense > 2 * b


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"classes": 0}, "classes=0"),
        ({"rate": 1.5}, "rate=1.5"),
        ({"ranks": 8, "group_size": 3}, r"group_size=3 does not divide the 8 ranks; use one of \[1, 2, 4, 8\]"),
        ({"optimizer": "lamb"}, "optimizer='lamb' is unknown; use one of sgd"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"optimizer": "torch-sgd", "update_in_backward": True}, "update_in_backward"),
        ({"optimizer": "torch-sgd", "state_dtype": "int8"}, "state_dtype"),
        ({"classes": 3, "ranks": 8}, "num_classes=3"),
    ],
)
def test_bad_setups_say_what_is_wrong(values, words):
    with pytest.raises(ValueError, match=words):
        Setup(**{"classes": 1000, **values})


# --- the command ------------------------------------------------------------------------------------------------------


def test_json_of_the_command(capsys):
    assert plan.main(["--classes", "29e6", "--ranks", "8", "--rate", "0.1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["setup"]["classes"] == 29_000_000
    assert result["rows_per_rank"] == 3_625_000
    assert result["memory"]["head_peak"] == head_memory(Setup(classes=29_000_000, ranks=8, rate=0.1)).peak
    assert result["wire"]["head"] == pytest.approx(sum(result["wire"]["messages"].values()))
    assert math.isclose(result["seconds"]["head"], sum(result["seconds"]["terms"].values()))
    assert result["advice"]["largest"] > 29_000_000


def test_tables_of_the_command(capsys):
    assert plan.main(["--classes", "2_000_000", "--ranks", "16", "--group-size", "8", "--network", "10Gbit"]) == 0
    text = capsys.readouterr().out
    for words in ("centers", "gradient of replicated centers", "16 ranks, network", "Most classes that fit", "Choose"):
        assert words in text


def test_the_command_fails_where_it_does_not_fit(capsys):
    assert plan.main(["--classes", "1e9", "--memory", "24GB"]) == 1
    assert "DOES NOT FIT" in capsys.readouterr().out


def test_the_published_table_is_printed(capsys):
    assert plan.main(["--published"]) == 0
    assert "32,324" in capsys.readouterr().out


def test_chips_that_run_kernels_are_planned_with_them(capsys):
    for device, kernels in (("v100-32", False), ("rtx2080ti", False), ("a100-80", True), ("h200", True)):
        plan.main(["--classes", "1e6", "--device", device, "--json"])
        found = json.loads(capsys.readouterr().out)
        assert found["setup"]["kernels"] is kernels
        assert ("rows in the optimizer" in [term["name"] for term in found["memory"]["terms"]]) is not kernels


def test_the_cpu_is_measured(capsys):
    assert plan.main(["--classes", "1e5", "--device", "cpu", "--json"]) == 0
    machine = json.loads(capsys.readouterr().out)["machine"]
    assert machine["flops"] > 1e8
    assert machine["bandwidth"] > 1e8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--classes is missing"),
        (["--classes", "many"], "'many' is no number"),
        (["--classes", "1.5"], "whole number"),
        (["--classes", "1000", "--memory", "big"], "'big' is no size"),
        (["--classes", "1000", "--rate", "2"], "rate=2.0"),
        (["--classes", "1000", "--flops", "-1"], "--flops -1.0 must be more than 0"),
        (["--classes", "2", "--ranks", "4"], "num_classes=2"),
    ],
)
def test_bad_arguments_say_what_is_wrong(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        plan.main(arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [("24GB", 24e9), ("512MiB", 512 * 2**20), ("10Gbit", 1.25e9), ("1e9", 1e9), ("900GB/s", 9e11), ("3T", 3e12)],
)
def test_sizes(text, value):
    assert plan._bytes(text) == value


def test_a_precision_has_its_own_rate_and_keeps_its_own_bytes():
    machine = MACHINES["h200"]
    assert [machine.product_flops(word) / machine.flops for word in ("float32", "tf32", "bfloat16", "float16x3")] == (
        pytest.approx([1.0, 495 / 67, 989 / 67, 989 / 67 / 3])
    )
    setup = Setup(classes=1_000_000, batch=1024, memory_budget=1 << 62)
    seconds = {p: head_seconds(setup.but(precision=p), machine)["matrix products"] for p in ("float32", "bfloat16")}
    assert seconds["float32"] == pytest.approx(seconds["bfloat16"] * 989 / 67)
    fast, half = setup, setup.but(precision="bfloat16")
    kept = [sum(t.bytes for t in head_memory(s).terms if t.name == "kept exponentials") for s in (fast, half)]
    assert kept == [4 * 1024 * 1_000_000, 2 * 1024 * 1_000_000]
    lean = setup.but(memory_budget=0)
    assert head_memory(lean).peak < head_memory(setup).peak
    assert head_seconds(lean, machine)["matrix products"] > head_seconds(setup, machine)["matrix products"]
