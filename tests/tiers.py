"""Which tests are run when: each is in one tier, and ``full`` holds ``smoke``.

smoke    3 minutes on two cores: is anything broken at all
full     20 minutes: what a change must pass; the default
nightly  as long as it takes: long fuzzing and long series of kills, in tests/nightly
"""

from __future__ import annotations

from pathlib import Path

TIERS = ("smoke", "full", "nightly")
TESTS = Path(__file__).parent
SMOKE = frozenset(
    {
        "ranks/test_pool.py",
        "unit/test_after_import.py",
        "unit/test_architecture.py",
        "unit/test_class_rows.py",
        "unit/test_config.py",
        "unit/test_data_batches.py",
        "unit/test_head.py",
        "unit/test_metrics_functional.py",
        "unit/test_optim_head.py",
        "unit/test_optim_steps.py",
        "unit/test_renamed.py",
        "unit/test_sampling.py",
        "unit/test_surface.py",
    }
)

# Run alone, after all others: they measure time, or what they wait for must happen within seconds.
ALONE = (
    "ranks/test_pool.py",
    "ranks/test_wire.py",
    "trainer/test_two_hosts.py",
    "unit/test_commands.py",
    "unit/test_cpu_matmul.py",
)
# Run one at a time, beside files that do none of this, from the beginning: they start clusters, services and processes
# that are killed, and spend most of their time waiting for them, within minutes.
ONE_AT_A_TIME = (
    "trainer/test_slurm.py",
    "trainer/test_restarts.py",
    "trainer/test_kill.py",
    "trainer/test_preemption.py",
    "trainer/test_errors.py",
    "trainer/test_watchdog.py",
    "unit/test_service.py",
    "unit/test_service_page.py",
    "unit/test_service_hostile.py",
    "unit/test_serving_docs.py",
    "unit/test_gallery_kills.py",
    "unit/test_signals.py",
    "unit/test_launching.py",
    "unit/test_door.py",
)
# Begun first, so that no worker waits long for another at the end.
LONG = (
    "unit/test_kernels_interpreted.py",
    "unit/test_docs_run.py",
    "trainer/test_experiments.py",
)


def tier_of(path: Path) -> str:
    """The tier of a file of tests."""
    name = path.relative_to(TESTS).as_posix()
    if name.startswith("nightly/"):
        return "nightly"
    return "smoke" if name in SMOKE else "full"


def is_in(tier: str, path: Path) -> bool:
    """Whether a file's tests are run in a tier."""
    own = tier_of(path)
    return own == tier or (tier == "full" and own == "smoke")
