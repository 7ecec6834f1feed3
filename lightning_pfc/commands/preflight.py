"""What is settled before data and model are built, which may take minutes: where a run trains, on how many ranks."""

from __future__ import annotations

from lightning.pytorch.accelerators import MPSAccelerator
from lightning_utilities.core.rank_zero import rank_zero_info
from omegaconf import DictConfig, open_dict

from lightning_pfc.distributed.jobs import check_number_of_processes, refuse_lonely_task


def check_launch(config: DictConfig) -> None:
    """See that this launch is what the trainer expects; on Apple's machines, take the CPU where nothing was said.

    Args:
        config: of ``pfc-train``; its ``trainer.accelerator`` may be changed.

    Raises:
        ValueError: for other numbers of processes or nodes than the launch has, and for a batch script or a shell
            without srun where other nodes are waited for.
    """
    if (alone := refuse_lonely_task(config.trainer.num_nodes)) is not None:
        rank_zero_info(alone)
    check_number_of_processes(config.trainer.devices, config.trainer.num_nodes)
    if config.trainer.accelerator == "auto" and MPSAccelerator.is_available():
        with open_dict(config):
            config.trainer.accelerator = "cpu"
        rank_zero_info("trainer.accelerator=auto: training on the CPU; Apple's GPU (mps) is not used.")


def explain_launcher(error: BaseException) -> str | None:
    """What went wrong in submitting a job of a sweep, None if it was something else."""
    if isinstance(error, RuntimeError) and 'Could not detect "srun"' in str(error):
        return (
            "hydra/launcher=slurm submits jobs to SLURM, and there is no srun on this machine. Run it on a login node, "
            "or leave it out: -m then runs the jobs here, one after the other."
        )
    if type(error).__module__.partition(".")[0] == "submitit":  # of sbatch, and of jobs that ended without a result
        return f"hydra/launcher=slurm: {error}".strip()
    return None
