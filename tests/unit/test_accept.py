"""The acceptance on a GPU, without one: what it says, how it ends, and that no test can report without running."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_pfc import PartialFC

FOLDER = Path(__file__).parents[2] / "recipes" / "gpu"
JUDGING = re.compile(r"\b(pass|passed|ok)\b", re.IGNORECASE)


@pytest.fixture
def accept(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("accept")
    for name in [name for name in sys.modules if name == "accept" or name.partition(".")[0] == "acceptance"]:
        del sys.modules[name]


def bench_of(accept, device):
    return importlib.import_module("acceptance.bench").Bench(device, small=True)


def test_all_are_gone_through_without_a_device_from_any_folder(tmp_path):
    command = [sys.executable, str(FOLDER / "accept.py"), "--fake", "--out", "results"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert [int(line.split()[0]) for line in lines] == list(range(18))
    assert all(line.endswith("not run") for line in lines)
    assert not JUDGING.search(done.stdout)
    record = json.loads((tmp_path / "results" / "accept.json").read_text())
    assert {test["verdict"] for test in record["tests"]} == {"not run"}
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["accept.json", "accept.png", "accept.txt"]
    assert (tmp_path / "results" / "accept.txt").read_text() == done.stdout
    page = (FOLDER.parent / "benchmarks" / "README.md").read_text()
    for test in record["tests"]:
        for name, value in test["figures"].items():
            if name.startswith(("ms_", "gb_")):
                assert re.search(rf"[ |]{value:.4g}[,  |]", page), f"{name} is {value:.4g} now, and not so in the page"


def test_without_a_gpu_it_says_so(accept, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(accept.torch.cuda, "is_available", lambda: False)
    assert accept.main(["--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "no GPU" in said.err
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tests", "18"], "no test 18"),
        (["--tests", "0-99"], "no test 18"),
        (["--tests", "five"], "'five' is no test"),
        (["--tests", "5-2"], "'5-2' is no test"),
        (["--tests", ""], "'' is no test"),
        (["--fake", "--peer", "/nowhere"], "--peer /nowhere is no folder"),
        (["--fake", "--device", "cpu"], "leave out --device or --fake"),
    ],
)
def test_a_wrong_word_is_one_line(accept, words, said, capsys):
    assert accept.main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_part_on_a_cpu_is_judged_and_written(accept, tmp_path, capfd):
    assert accept.main(["--device", "cpu", "--tests", "0,2,4-5", "--out", str(tmp_path)]) == 0
    said = capfd.readouterr().out
    assert said.count("ran: met\n") == 4
    assert accept.main(["--device", "cpu", "--tests", "0,6", "--out", str(tmp_path)]) == 1
    assert capfd.readouterr().out.splitlines()[2].endswith("not run")
    record = json.loads((tmp_path / "accept.json").read_text())
    assert [test["verdict"] for test in record["tests"]] == ["ran: met", "not run"]


def pretends(check):
    """The figures that the check asks for, and nothing run."""

    def run(bench):
        bench.tell(**{bound.figure: bound.must for bound in check.bounds})

    return dataclasses.replace(check, run=run, gpu_only="")


@pytest.mark.parametrize("number", range(18))
def test_a_test_that_reports_without_running_is_noticed(accept, number):
    check = accept.CHECKS[number]
    assert check.number == number
    line = accept.run_check(pretends(check), bench_of(accept, "cpu"))
    assert line.verdict == "ran: short"
    assert "reported without running" in line.text()
    silent = dataclasses.replace(check, run=lambda bench: setattr(bench, "work", 10**6), gpu_only="")
    line = accept.run_check(silent, bench_of(accept, "cpu"))
    assert line.verdict == "ran: short"
    assert "was not reported" in line.text()
    assert not accept.run_check(pretends(check), bench_of(accept, "meta")).walked
    assert not accept.run_check(silent, bench_of(accept, "meta")).walked


@pytest.mark.parametrize("number", range(18))
def test_a_figure_beyond_its_bound_or_no_number_falls_short(accept, number):
    verdict = importlib.import_module("acceptance.verdict")
    check = accept.CHECKS[number]
    good = {bound.figure: bound.must for bound in check.bounds}
    assert verdict.judge(check, good, check.least) == []
    for bound in check.bounds:
        beyond = bound.must - 1e-3 if bound.at_least else bound.must * 1.01 + 1e-12
        for value in (beyond, float("nan")):
            assert verdict.judge(check, good | {bound.figure: value}, check.least)


def test_a_peer_that_raises_is_left_out_by_name(accept, monkeypatch):
    peers = importlib.import_module("acceptance.peers")

    def broken():
        raise AssertionError("must initialize distributed")

    makers = {"linear_ce": lambda: lambda x, labels: (x @ x.t()).sum(), "insightface": broken}
    monkeypatch.setattr(peers, "_contestants", lambda bench, classes: makers)
    bench = bench_of(accept, "cpu")
    bench.start()
    peers.peers(bench)
    assert bench.figures["linear_ce"] > 0
    assert "insightface" not in bench.figures
    assert bench.notes == ["left out: insightface (AssertionError: must initialize distributed)"]
    assert not accept.torch.distributed.is_initialized()


@pytest.mark.parametrize(("milliseconds", "timed"), [(1.0, 31), (2000.0, 3), (60_000.0, 2)])
def test_what_takes_long_is_repeated_less_often(accept, monkeypatch, milliseconds, timed):
    bench, calls = bench_of(accept, "cpu"), []
    bench.small = False

    def clock(call):
        calls.append(call)
        return milliseconds

    monkeypatch.setattr(bench, "_timed", clock)
    assert bench.milliseconds(lambda: None) == milliseconds
    assert len(calls) == timed


def test_an_error_falls_short_in_one_line_without_judging_words(accept):
    def fails(bench):
        print("library chatter: tests passed")
        raise RuntimeError("did not pass:\nall OK otherwise")

    line = accept.run_check(dataclasses.replace(accept.CHECKS[4], run=fails), bench_of(accept, "cpu"))
    assert line.text().endswith("ran: short")
    assert "\n" not in line.text()
    assert not JUDGING.search(line.text())


@pytest.mark.parametrize("number", [2, 4, 5])
def test_a_fault_in_the_head_is_found(accept, number, monkeypatch):
    right, calls = PartialFC.forward, iter(range(10**6))

    def wrong(self, embeddings, labels):
        slope = 1.0 if self.weight.dtype == accept.torch.float64 else 1.05 + 0.01 * next(calls)
        return right(self, embeddings * slope - (slope - 1) * embeddings.roll(1, 0), labels)

    monkeypatch.setattr(PartialFC, "forward", wrong)
    line = accept.run_check(accept.CHECKS[number], bench_of(accept, "cpu"))
    assert line.verdict == "ran: short", line.text()


def test_numbers_beside_float64_notices_a_loss_that_is_off(accept, monkeypatch):
    correctness = importlib.import_module("acceptance.correctness")
    monkeypatch.setattr(correctness, "_cases", lambda bench: [("CosFace", 1.0, "float32", "kept")] * 2)
    check = dataclasses.replace(accept.CHECKS[1], least=4, bounds=accept.CHECKS[1].bounds[:3])
    assert accept.run_check(check, bench_of(accept, "cpu")).verdict == "ran: met"
    right = PartialFC.forward

    def wrong(self, embeddings, labels):
        loss = right(self, embeddings, labels)
        return loss if self.weight.dtype == accept.torch.float64 else loss * 1.001

    monkeypatch.setattr(PartialFC, "forward", wrong)
    line = accept.run_check(check, bench_of(accept, "cpu"))
    assert line.verdict == "ran: short"
    assert "loss_float32" in " ".join(line.notes)


LAUNCHED = ["cudaLaunchKernel"] * 40


@pytest.mark.parametrize(
    ("seen", "figure"),
    [
        (["cudaStreamSynchronize"], "waits"),
        (["Memcpy DtoH (Device -> Pageable)"], "copies_back"),
        (["cudaMalloc"], "allocations"),
        (["cudaHostAlloc"], "allocations"),
        (["Memcpy DtoH (Device -> Pinned)"] * 41, "checks_a_step"),
        (["cudaDeviceSynchronize"] * 2, "waits"),
        (["cuCtxSynchronize"] * 2, "waits"),
        (["cuStreamSynchronize"], "waits"),
        (["cudaEventSynchronize"], "events_a_step"),
        (["cuEventSynchronize"], "events_a_step"),
    ],
)
def test_a_wait_in_what_the_profiler_saw_falls_short(accept, seen, figure):
    device = importlib.import_module("acceptance.device")
    verdict = importlib.import_module("acceptance.verdict")
    usual = [*LAUNCHED, "cudaDeviceSynchronize", "Memcpy HtoD (Pageable -> Device)"]
    usual += ["Memcpy DtoH (Device -> Pinned)", "cudaEventSynchronize", "cudaEventQuery", "cudaStreamWaitEvent"] * 40
    check = accept.CHECKS[6]
    assert verdict.judge(check, device.waits_among(usual, 40), check.least) == []
    (reason,) = verdict.judge(check, device.waits_among(usual + seen, 40), check.least)
    assert reason.startswith(f"{figure} is ")
    with pytest.raises(RuntimeError, match="saw no kernel started"):
        device.waits_among([], 40)


@pytest.mark.parametrize(
    ("said", "errors"),
    [
        ("started 40 calls of {n} operations\n========= {summary}", 0.0),
        ("started 40 calls of {n} operations\n========= {bad}", 3.0),
        ("========= {summary}", float("inf")),
        ("started 40 calls of {n} operations", float("inf")),
        ("started 2 calls of {n} operations\n========= {summary}", float("inf")),
        ("started 40 calls of 2 operations\n========= {summary}", float("inf")),
    ],
)
@pytest.mark.parametrize("kind", ["memcheck", "racecheck"])
def test_what_a_sanitizer_says_is_read(accept, tmp_path, monkeypatch, kind, said, errors):
    """By a tool of the test's own: one that starts fewer kernels, or says nothing, is no tool that found nothing."""
    device = importlib.import_module("acceptance.device")
    from lightning_pfc.kernels.library import OPERATIONS

    good = {"memcheck": "ERROR SUMMARY: 0 errors", "racecheck": "RACECHECK SUMMARY: 0 hazards displayed (0 errors)"}
    summary = good[kind]
    text = said.format(n=len(OPERATIONS), summary=summary, bad=summary.replace(" 0 ", " 3 ", 1))
    other = f"started 40 calls of {len(OPERATIONS)} operations\n" + next(v for k, v in good.items() if k != kind)
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\nif [ $2 = {kind} ]; then cat <<X\n{text}\nX\nelse cat <<X\n{other}\nX\nfi\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    line = accept.run_check(dataclasses.replace(accept.CHECKS[16], gpu_only=""), bench_of(accept, "cpu"))
    assert line.figures[f"{kind}_errors"] == errors
    assert line.verdict == ("ran: met" if errors == 0 else "ran: short")
    assert compile(device.PROGRAM, "program", "exec")


def test_without_a_sanitizer_it_is_not_run(accept, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    line = accept.run_check(dataclasses.replace(accept.CHECKS[16], gpu_only=""), bench_of(accept, "cpu"))
    assert line.verdict == "not run"
    assert "comes with CUDA's toolkit" in line.text()


def test_memory_is_counted_without_a_device(accept):
    """Of tensors without values; a step that holds more is noticed, and the plan beside it."""
    line = accept.run_check(accept.CHECKS[10], bench_of(accept, "meta"))
    assert line.walked
    assert set(line.figures) == {bound.figure for bound in accept.CHECKS[10].bounds}
    from lightning_pfc.planning.live_bytes import LiveBytes

    meta = accept.torch.device("meta")
    kept = accept.torch.empty(1000, device=meta)
    with LiveBytes() as live:
        one = accept.torch.empty(1 << 20, device=meta)
        two = one.view(1024, 1024) + 1  # 4 MiB each
        del one
        three = two.t().contiguous()
        kept.add_(1)
        assert live.peak == 2 * (4 << 20)
        accept.torch.empty(100, device="cpu")
        del two, three
        kept + 1
    assert live.live == 4096


# --- tests in a process of their own ----------------------------------------------------------------------------------

TOLD = """
import json, os, signal, sys, time
def told(number, **more):
    print(json.dumps({"test": number, "figures": {"x": 1.0}, "notes": [], "seconds": 0.1} | more), flush=True)
print("chatter of a library", flush=True)
for number in map(int, sys.argv[1].split(",")):
    if number == 1:
        print(json.dumps({"test": 1, "so_far": {"half": 2.0}}), flush=True)
        time.sleep(60)
    if number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 5:
        sys.exit("no module named torch")
    told(number, verdict="ran: met")
    if number == 6:
        sys.exit(3)
"""


def test_what_hangs_crashes_or_breaks_the_device_costs_one_test(accept, tmp_path):
    """Test 1 never ends, 3 crashes, 5 cannot begin, 6 leaves an error on the GPU."""
    apart, started = importlib.import_module("acceptance.apart"), []
    checks = [dataclasses.replace(check, seconds=0.2 if check.number == 1 else 10.0) for check in accept.CHECKS[:9]]

    def command(waiting, seconds):
        assert 0 < seconds <= 40
        started.append([check.number for check in waiting])
        return [sys.executable, "-S", "-c", TOLD, ",".join(map(str, started[-1]))]

    lines = list(apart.run_apart(checks, command, 40.0))
    assert [line.check.number for line in lines] == list(range(9))
    short = {line.check.number: line.notes for line in lines if line.verdict == "ran: short"}
    assert short == {
        1: ["it took longer than its share of the time, and was stopped"],
        3: ["its process ended by SIGSEGV"],
        5: ["its process ended with 1: no module named torch"],
    }
    assert lines[1].figures == {"half": 2.0}  # what it had found
    assert lines[0].figures == {"x": 1.0}
    assert {line.verdict for line in lines if line.check.number not in short} == {"ran: met"}
    assert [first for first, *_ in started] == [0, 2, 4, 6, 7]


def test_shares_of_the_time_add_up_to_all_of_it(accept):
    apart = importlib.import_module("acceptance.apart")
    ends = list(apart.deadlines(accept.CHECKS, 600.0).values())
    assert ends == sorted(ends)
    assert ends[-1] == pytest.approx(600.0)
    assert min(later - before for before, later in zip([0.0, *ends], ends, strict=False)) >= 5.0
    assert apart.deadlines(accept.CHECKS[8:9], 600.0) == {8: 600.0}


def test_a_process_of_tests_tells_of_figures_as_they_come(tmp_path):
    command = [sys.executable, str(FOLDER / "accept.py"), "--tell", "--device", "cpu", "--tests", "2,6"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    *so_far, last, left_out = map(json.loads, done.stdout.splitlines())
    assert [set(record["so_far"]) for record in so_far] == [{"dx_1e-4"}, {"dx_1e-4", "dx_1e-6"}]
    assert last["figures"] == so_far[-1]["so_far"]
    assert [last["verdict"], left_out["verdict"]] == ["ran: met", "not run"]
    assert list(tmp_path.iterdir()) == []


def test_numbers_beside_float64_say_how_far_they_came(accept, monkeypatch):
    correctness = importlib.import_module("acceptance.correctness")
    bench = bench_of(accept, "cpu")
    monkeypatch.setattr(correctness, "_cases", lambda bench: [("CosFace", 1.0, "float32", "kept")] * 4)
    bench.listens = lambda figures: setattr(bench, "end", 0.0) if figures["share_of_cases"] >= 0.5 else None
    correctness.against_float64(bench)
    assert bench.figures["share_of_cases"] == 0.5
    assert bench.figures["loss_float32"] < 1e-6
    verdict = importlib.import_module("acceptance.verdict")
    assert "share_of_cases is 0.5" in verdict.judge(accept.CHECKS[1], bench.figures, 100)


def test_a_kernel_that_is_left_out_is_named(accept, monkeypatch):
    """Steps go on without it, in plain torch, and slower: whoever reads the times has to know."""
    speed = importlib.import_module("acceptance.speed")
    from lightning_pfc.kernels import choice
    from lightning_pfc.kernels.library import OPERATIONS

    def chosen(word, device):
        accept.warnings.warn("The kernel link_equal raises RuntimeError: no; plain torch does its work.", stacklevel=2)
        return choice.Kernels(frozenset(OPERATIONS.keys() - {"link_equal"}), 90)

    monkeypatch.setattr(speed, "choose", chosen)
    bench = bench_of(accept, "cpu")
    speed._kernels_left_out(bench, accept.torch.device("cuda"))
    assert bench.figures == {"kernels_left_out": 1.0}
    assert bench.notes[0] == "Triton kernels on sm_90, but link_equal in torch"
    assert bench.notes[1].startswith("The kernel link_equal raises RuntimeError")
