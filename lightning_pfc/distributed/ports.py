"""Where the processes of a job meet: at ports that come from the job's number, the first that is free.

``python -m lightning_pfc.distributed.ports`` prints one for ``torchrun --rdzv-endpoint``, to be run on its host.
"""

from __future__ import annotations

import os
import sys

from lightning_pfc.distributed.door import listen_on

PORT_VARIABLE = "PFC_PORT"
_TRIES = 16
_FIRST_PORT, _PORTS = 25_000, 7_000  # below those that systems give away, beside those of Lightning
_FIRST_OF_TORCHRUN, _OF_TORCHRUN, _STRIDE = 20_000, 5_000, 313


def step_ports() -> list[int]:
    """Where the ranks of a SLURM step look for rank 0 before there is a group, in this order; it takes the first free.

    From ``$PFC_PORT`` on, if that is given; else those that ``srun --resv-ports`` has reserved; else from a number on
    that job and step give.

    Raises:
        ValueError: if ``$PFC_PORT`` is no number of a port.
    """
    if given := _given():
        return given
    if reserved := os.environ.get("SLURM_STEP_RESV_PORTS"):
        first, _, last = reserved.split(",")[0].partition("-")
        return list(range(int(first), int(last or first) + 1))
    number = int(os.environ["SLURM_JOB_ID"]) * 31 + int(os.environ.get("SLURM_STEP_ID", "0") or 0)
    return [_FIRST_PORT + (number + n) % _PORTS for n in range(_TRIES)]


def torchrun_ports() -> list[int]:
    """Where the agents of ``torchrun`` in a SLURM job may meet, in this order; the first that is free is chosen.

    An agent opens its port only seconds after it was chosen. So the second choice of one job is the first one of a job
    far away, and jobs that start beside each other never choose the same.

    Raises:
        ValueError: if ``$PFC_PORT`` is no number of a port.
    """
    number = int(os.environ["SLURM_JOB_ID"])
    return _given() or [_FIRST_OF_TORCHRUN + (number + _STRIDE * n) % _OF_TORCHRUN for n in range(_TRIES)]


def _given() -> list[int]:
    if not (given := os.environ.get(PORT_VARIABLE)):
        return []
    if not given.isdecimal() or not 0 < int(given) <= 65535 - _TRIES:
        raise ValueError(f"{PORT_VARIABLE}={given} must be the number of a port, from 1 to {65535 - _TRIES}")
    return [int(given) + n for n in range(_TRIES)]


def main() -> int:
    """Print the port; exit code 1 and a line that says why if none is free."""
    try:
        ports = torchrun_ports()
        listeners = listen_on(["0.0.0.0", "::"], ports)
    except (OSError, ValueError) as error:
        print(f"No port for torchrun: {error}. Give {PORT_VARIABLE}=NUMBER.", file=sys.stderr)
        return 1
    port = int(listeners[0].getsockname()[1])
    for each in listeners:
        each.close()
    if port != ports[0]:
        print(f"port {ports[0]} is taken by another program; torchrun meets at port {port}", file=sys.stderr)
    print(port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
