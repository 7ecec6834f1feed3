"""Two hosts with a cable between them: training works, and when the cable is cut both sides end, and say why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "cluster"
PROGRAMS = ("ip", "unshare", "nsenter", "bash")

missing = [name for name in PROGRAMS if shutil.which(name) is None]
reason = f"{', '.join(missing)} not installed" if missing else ""
if not reason and os.geteuid() != 0:
    reason = "network namespaces need root"
if not reason:
    command = ["bash", str(HERE / "two_hosts.sh"), "true"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    reason = f"no network namespaces here: {tried.stderr.strip()[-200:]}" if tried.returncode else ""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(reason), reason=reason)]

DRIVER = r"""
cd "$1"
start() {
  on a env RANK=0 GROUP_RANK=0 $PYTHON $WORKER . >a.$1.out 2>a.$1.err & A=$!
  on b env RANK=1 GROUP_RANK=1 $PYTHON $WORKER . >b.$1.out 2>b.$1.err & B=$!
}
start 1
for _ in $(seq 600); do grep -q "step 22" b.1.out && break; sleep 0.1; done
ip -n a link set eth0 down
SECONDS=0
wait $A && exit 10
wait $B && exit 11
echo $SECONDS >seconds
ip -n a link set eth0 up
start 2
wait $A || exit 12
wait $B || exit 13
"""


def test_a_cut_cable_ends_both_sides_and_the_run_goes_on_later(tmp_path: Path) -> None:
    names = {"LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "two_hosts"}
    where = {"MASTER_ADDR": "10.78.0.1", "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    ours = {
        "PYTHON": sys.executable,
        "WORKER": "-m tests.trainer.cluster.host_worker",
        "PYTHONPATH": str(HERE.parents[2]),
    }
    done = subprocess.run(
        ["bash", str(HERE / "two_hosts.sh"), "bash", "-c", DRIVER, "driver", str(tmp_path)],
        env=dict(os.environ) | names | where | ours,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    text = {path.name: path.read_text() for path in sorted(tmp_path.glob("*.[12].*"))}
    assert done.returncode == 0, f"{done} {text}"
    assert int((tmp_path / "seconds").read_text()) < 20
    assert "Watchdog: no sign of rank 1 (host b, process" in text["a.1.err"]
    assert "Watchdog: no sign of rank 0 (10.78.0.1) for 4 s" in text["b.1.err"]
    for host in "ab":
        # From the newest of the checkpoints, which were taken every five steps.
        (start,) = [line for line in text[f"{host}.2.out"].splitlines() if line.startswith("start")]
        assert start in ("start 20", "start 25")
        assert text[f"{host}.2.out"].endswith("end 60\n")
