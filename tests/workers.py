"""Three workers for a whole tier: most files share them, some only one at a time; those that measure time come last."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from xdist.scheduler import LoadFileScheduling

from tests import tiers

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

WORKERS = 3  # on two cores: one of them mostly waits, for clusters and for processes that are killed
PROCESSORS = 2  # below this many, a tier runs in one process


def workers_for(config: pytest.Config) -> int:
    """How many workers a call of pytest gets: none where a few tests are picked, so that they run in this process."""
    choosing = ("keyword", "markexpr", "lf", "failedfirst")  # the last two are not there with -p no:cacheprovider
    picked = config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    picked = picked or any(getattr(config.option, name, None) for name in choosing)
    return 0 if picked or _processors() < PROCESSORS else WORKERS


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class TogetherThenAlone(LoadFileScheduling):
    """Whole files go to the workers, the long ones first; files of ``tiers.ALONE`` wait until one worker is left.

    Of ``tiers.ONE_AT_A_TIME`` no two are under way at once; one always is, until none is left.

    A worker holds its last test back until it knows what follows. So when only files of ``tiers.ALONE`` are left, every
    worker but one is told to end, and the one that stays gets no more work until they have.
    """

    def _assign_work_unit(self, node: WorkerController) -> None:
        shared = self._shared_for(node)
        if shared:
            self.workqueue.move_to_end(shared[0], last=False)
        elif len(self.nodes) > 1:
            if not all(other.shutting_down for other in self.nodes if other is not node):
                node.shutdown()
            return
        super()._assign_work_unit(node)

    def _shared_for(self, node: WorkerController) -> list[str]:
        """The files that a worker may have beside the others, the next one first."""
        one_at_a_time = [file for file in _ONE_AT_A_TIME if file in self.workqueue]
        long = [file for file in _LONG if file in self.workqueue]
        others = [file for file in self.workqueue if file not in _ALONE and file not in _ONE_AT_A_TIME]
        return [*([] if self._one_is_under_way(node) else one_at_a_time), *long, *others]

    def _one_is_under_way(self, node: WorkerController) -> bool:
        return any(
            file in _ONE_AT_A_TIME and not all(tests.values())
            for other, work in self.assigned_work.items()
            if other is not node
            for file, tests in work.items()
        )

    def remove_node(self, node: WorkerController) -> str | None:
        """A worker has ended: the one that is left may have been waiting for that."""
        crashed = super().remove_node(node)
        for other in 2 * self.nodes:  # twice: a file may have one test, which a worker would hold back
            self._reschedule(other)
        return crashed


_ALONE = frozenset(f"tests/{name}" for name in tiers.ALONE)
_ONE_AT_A_TIME = tuple(f"tests/{name}" for name in tiers.ONE_AT_A_TIME)
_LONG = tuple(f"tests/{name}" for name in tiers.LONG)
