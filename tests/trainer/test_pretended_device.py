"""A whole run on a device that is pretended: nothing mixes devices, and what makes the host wait is counted."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch.utils.backend_registration

RUN = """
from tests.trainer.pretended_device import register

register()
from tests.trainer.pretended_run import main

main()
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this PyTorch takes no device that is written in Python")
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    read: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return read


def test_the_device_refuses_what_a_gpu_refuses(found):
    assert "Expected all tensors to be on the same device" in found["mixed"]


def test_training_validation_and_test_run_there_and_the_losses_are_those_of_the_host(found):
    # of the first steps: sums are in another order there, and batch statistics make more of it in every step
    assert found["losses"][:4] == pytest.approx(found["host"][:4], rel=1e-5)
    assert len(found["losses"]) == len(found["host"]) == 6


def test_the_host_waits_for_nothing_between_two_looks_at_the_loss(found):
    """From the third step on: the first ones set things up, and the bar looks at the first loss."""
    assert found["ours"][2:] == [[], [], [], []]


def test_a_bar_of_lightnings_waits_twice_in_every_step(found):
    assert all(sum("_local_scalar_dense" in wait for wait in step) >= 2 for step in found["lightnings"][2:])
