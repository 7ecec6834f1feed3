"""Two workers for a whole tier: most files share them, those that measure time come last, alone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from xdist.scheduler import LoadFileScheduling

from tests import tiers

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

WORKERS = 2


def workers_for(config: pytest.Config) -> int:
    """How many workers a call of pytest gets: none where a few tests are picked, so that they run in this process."""
    choosing = ("keyword", "markexpr", "lf", "failedfirst")  # the last two are not there with -p no:cacheprovider
    picked = config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    picked = picked or any(getattr(config.option, name, None) for name in choosing)
    return 0 if picked or _processors() < WORKERS else WORKERS


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class TogetherThenAlone(LoadFileScheduling):
    """Whole files go to the workers, the long ones first; files of ``tiers.ALONE`` wait until one worker is left.

    A worker holds its last test back until it knows what follows. So when only files of ``tiers.ALONE`` are left, every
    worker but one is told to end, and the one that stays gets no more work until they have.
    """

    def _assign_work_unit(self, node: WorkerController) -> None:
        shared = [file for file in self.workqueue if file not in _ALONE]
        if shared:
            long = [file for file in _LONG if file in self.workqueue]
            self.workqueue.move_to_end((long or shared)[0], last=False)
        elif len(self.nodes) > 1:
            if not all(other.shutting_down for other in self.nodes if other is not node):
                node.shutdown()
            return
        super()._assign_work_unit(node)

    def remove_node(self, node: WorkerController) -> str | None:
        """A worker has ended: the one that is left may have been waiting for that."""
        crashed = super().remove_node(node)
        for other in 2 * self.nodes:  # twice: a file may have one test, which a worker would hold back
            self._reschedule(other)
        return crashed


_ALONE = frozenset(f"tests/{name}" for name in tiers.ALONE)
_LONG = tuple(f"tests/{name}" for name in tiers.LONG)
