"""A program: imports all modules and trains, without what Windows does not have. Called with a folder by a test."""

from __future__ import annotations

import importlib
import mmap
import os
import pkgutil
import signal
import sys

# Other packages first: they know Windows by sys.platform, and use there what they have on it.
import hydra  # noqa: F401
import lightning.pytorch.loggers  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import PIL.Image  # noqa: F401
import tensorboard  # noqa: F401
import timm  # noqa: F401
import torch._dynamo
import torch.distributed.checkpoint
import torch.utils.tensorboard  # noqa: F401
import torchvision  # noqa: F401

UNIX_ONLY = ("curses", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")
CALLS = {
    os: "O_DIRECT O_NONBLOCK O_CLOEXEC fork getuid geteuid killpg mkfifo pread preadv pwrite pwritev posix_fadvise "
    "posix_fallocate register_at_fork sched_getaffinity statvfs uname",
    signal: "SIGUSR1 SIGUSR2 SIGHUP SIGSTOP SIGQUIT SIGCHLD",
    mmap: " ".join(name for name in dir(mmap) if name.startswith(("MAP_", "PROT_", "MADV_"))),
}
NOT_THERE = ("lightning_pfc.kernels", "lightning_pfc.service")  # Triton; a server's extra


def become_windows() -> None:
    for name in UNIX_ONLY:
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in CALLS.items():
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    os.kill = refuse


def refuse(pid: int, number: int) -> None:
    raise AssertionError("os.kill(pid, 0) ends the process on Windows")


def main(folder: str) -> None:
    become_windows()
    import lightning_pfc

    for found in pkgutil.walk_packages(lightning_pfc.__path__, "lightning_pfc."):
        if not found.name.startswith(NOT_THERE) and not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    from tests.trainer.test_platforms import TINY

    lightning_pfc.train(*TINY, f"output_dir={folder}", "trainer.accelerator=cpu")


if __name__ == "__main__":
    main(sys.argv[1])
