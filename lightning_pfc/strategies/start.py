"""How the processes of a run start: who starts them, where they meet, and what is refused before that."""

from __future__ import annotations

import os

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.imports import _IS_INTERACTIVE
from lightning.pytorch.accelerators import Accelerator, MPSAccelerator
from lightning.pytorch.strategies import DDPStrategy

from lightning_pfc.distributed.aside import aside
from lightning_pfc.distributed.jobs import in_slurm, step_rank, step_size
from lightning_pfc.distributed.rendezvous import start_group_after_restart, start_group_alone, start_group_in_slurm
from lightning_pfc.processes.launching import all_are_there, saying_what_it_waits_for
from lightning_pfc.strategies.launcher import ScriptLauncher


class StartTogether(DDPStrategy):
    """The start of :class:`lightning_pfc.PartialFCStrategy`."""

    @property
    def accelerator(self) -> Accelerator | None:
        """Lightning's, except Apple's GPU.

        Raises:
            ValueError: for ``MPSAccelerator``, which Lightning takes by itself on Apple's machines.
        """
        return super().accelerator

    @accelerator.setter
    def accelerator(self, accelerator: Accelerator | None) -> None:
        if isinstance(accelerator, MPSAccelerator):
            raise ValueError(
                'strategy="pfc" does not train on Apple\'s GPU (MPS, which accelerator="auto" means here): give '
                'Trainer(accelerator="cpu").'
            )
        DDPStrategy.accelerator.fset(self, accelerator)  # type: ignore[attr-defined]

    def _configure_launcher(self) -> None:
        """Lightning's launcher; none for one process of a notebook, where it would find no script to run again.

        Raises:
            MisconfigurationException: for several of a notebook that are not forked from it.
        """
        super()._configure_launcher()
        if _IS_INTERACTIVE and self._launcher is not None and not self._launcher.is_interactive_compatible:
            if self.num_nodes * self.num_processes > 1:
                raise MisconfigurationException(
                    "a notebook or another interactive session has no script for other processes to run: give "
                    'Trainer(strategy="pfc_notebook"), which forks them, or devices=1; or run a script.'
                )
            self._launcher = None
        elif self._start_method == "popen" and self.cluster_environment is not None:
            self._launcher = ScriptLauncher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup_distributed(self) -> None:
        """Start the process group as Lightning does.

        After a restart by torchrun apart from what died before; in a step of SLURM at a port that is free; a process
        that nobody launched and that is alone without a port.

        Raises:
            ValueError: in a step of SLURM with several tasks that Lightning takes for one process.
        """
        environment, timeout, backend = self.cluster_environment, self._timeout, self._get_process_group_backend()
        if environment is not None and not environment.creates_processes_externally and in_slurm() and step_size() > 1:
            raise ValueError(
                f"This is task {step_rank()} of a SLURM step of {step_size()} tasks, which Lightning takes for a shell "
                "by the name of its job: give it another one, srun --job-name=pfc ..."
            )
        if isinstance(environment, SLURMEnvironment):
            start_group_in_slurm(backend, timeout)  # says itself whom it waits for
        size = self.num_nodes * self.num_processes
        text = f"waiting for all {size} processes of this run to start{_left_over(environment)}"
        with saying_what_it_waits_for(text):
            aside(lambda: self._start_group(backend, alone=size == 1))
        all_are_there()

    def _start_group(self, backend: str, alone: bool) -> None:
        if isinstance(self.cluster_environment, TorchElasticEnvironment):
            start_group_after_restart(backend, self._timeout)
        elif isinstance(self.cluster_environment, LightningEnvironment) and alone:
            start_group_alone(backend, self._timeout)
        super().setup_distributed()


def _left_over(environment: ClusterEnvironment | None) -> str:
    """What to say where a variable of an earlier launch may have led Lightning to leave the start to others."""
    name = "LOCAL_RANK"
    if not isinstance(environment, LightningEnvironment) or name not in os.environ:
        return ""
    return f" ({name}={os.environ[name]} in the environment says that something else starts them; else unset it)"
