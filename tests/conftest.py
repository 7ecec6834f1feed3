"""Fixtures of all tests: the pool of ranks, and guards against tests that leave something behind."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; for the processes that tests start as well

import contextlib
import gc
import logging
import multiprocessing as mp
import signal
import time
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist

from lightning_pfc.commands.imports import large_imports
from tests import console, tiers, workers
from tests.ranks import RankPool

if TYPE_CHECKING:
    from xdist.remote import Producer

# Processes that the standard library starts once and keeps.
OF_MULTIPROCESSING = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
# Lightning writes these in the process that makes a Trainer and leaves them there: put back, not complained of.
LIGHTNING_VARIABLES = {
    "CUDA_DEVICE_ORDER",
    "CUDA_MODULE_LOADING",
    "GROUP_RANK",
    "KMP_DUPLICATE_LIB_OK",
    "KMP_INIT_AT_FORK",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "OMP_NUM_THREADS",
    "NODE_RANK",
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
    "PYTEST_CURRENT_TEST",
    "PYTORCH_NVML_BASED_CUDA_CHECK",
    "RANK",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "WORLD_SIZE",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--tier``: which of the tests are run; see CONTRIBUTING.md."""
    parser.addoption("--tier", choices=tiers.TIERS, default="full", help="smoke: 3 minutes; full: 20; nightly: hours")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files of other tiers are not even imported."""
    is_test = collection_path.suffix == ".py" and collection_path.name.startswith("test_")
    return True if is_test and not tiers.is_in(config.getoption("--tier"), collection_path) else None


def pytest_report_header(config: pytest.Config) -> str:
    """Say what is left out."""
    tier = config.getoption("--tier")
    files = sorted(tiers.TESTS.rglob("test_*.py"))
    inside = [path for path in files if tiers.is_in(tier, path)]
    return f"tier {tier}: {len(inside)} of {len(files)} files of tests; see CONTRIBUTING.md"


def pytest_configure(config: pytest.Config) -> None:
    """One thread per process, as the ranks have: sums in the same order, and no fight for the cores."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Tests are imported and collected: three times what a command imports, and a third less time without a search."""
    with large_imports():
        return (yield)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A whole tier gets three workers; ``-n 0`` is one process all the same."""
    return workers.workers_for(config)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> workers.TogetherThenAlone:
    """Which worker runs what, and what runs alone."""
    return workers.TogetherThenAlone(config, log)


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    """Processes that act as ranks: ``ranks.run(world_size, function, *args)``."""
    pool = RankPool()
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def quiet_lightning() -> Iterator[None]:
    """Keeps Lightning's notices about devices and loggers out of the output of failed tests."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"lightning\..*")
        warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def no_leaked_variables() -> Iterator[None]:
    """Fails a test that changes the environment of the process for the tests after it."""
    before = dict(os.environ)
    yield
    changed = {name for name in before.keys() | os.environ.keys() if before.get(name) != os.environ.get(name)}
    for name in changed:
        if name in before:
            os.environ[name] = before[name]
        else:
            os.environ.pop(name, None)
    leaked = sorted(changed - LIGHTNING_VARIABLES)
    assert not leaked, f"the test left environment variables changed: {leaked}; use monkeypatch.setenv."


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> Generator[None, object, object]:
    """What a fixture of a whole file changes must not become what its tests, and all later ones, find."""
    if fixturedef.scope == "function":
        return (yield)
    before = dict(os.environ)
    try:
        return (yield)
    finally:
        for name in before.keys() | os.environ.keys():
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]


@pytest.fixture(autouse=True)
def no_leaked_signal_handlers() -> Iterator[None]:
    """Fails a test that leaves handlers of signals behind; what is ignored is inherited by all processes after it."""
    before = _handlers()
    yield
    left = _handlers()
    for number, handler in before.items():
        if left[number] != handler:
            signal.signal(number, handler)
    assert left == before, f"the test left handlers of signals behind: {left}, before: {before}"


@pytest.fixture(autouse=True)
def no_leaked_process_group() -> Iterator[None]:
    """Fails a test that leaves this process inside a process group."""
    yield
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        pytest.fail("the test left a process group behind; run it on the `ranks` fixture.")


@pytest.fixture(autouse=True)
def no_leaked_processes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves child processes running (those that serve the whole session are meant to stay)."""
    before = _children()
    yield
    pool = request.getfixturevalue("ranks") if "ranks" in request.fixturenames else None
    stay = before | set(pool.pids if pool else ()) | console.CONSOLE.pids
    if _children() - stay:
        gc.collect()  # data loaders end their workers when they are collected; half a second, so only if needed
    deadline = time.monotonic() + 5.0
    while (left := _children() - stay) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, f"the test left processes running: {sorted(_describe(pid) for pid in left)}"


def _handlers() -> dict[int, Any]:
    names = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
    return {int(number): signal.getsignal(number) for name in names if (number := getattr(signal, name, None))}


def _children() -> set[int]:
    """Process ids of this process's children, and of those that multiprocessing forks for it, without its own."""
    if not Path("/proc/self/task").exists():
        return {process.pid for process in mp.active_children() if process.pid is not None}
    mp.active_children()  # collects the ones that have ended
    found = _children_of("self")
    for pid in list(found):
        if "multiprocessing.forkserver" in _describe(pid):
            found |= _children_of(pid)
    return {pid for pid in found if _is_running(pid)}


def _children_of(pid: int | str) -> set[int]:
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found.update(int(child) for child in (task / "children").read_text().split())
    return found


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX" and not any(name in _describe(pid) for name in OF_MULTIPROCESSING)


def _describe(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        command = "ended"
    return f"{pid} {command[:200]}"
