"""The commands as processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def command(name: str, *words: str | Path, **options: Any) -> subprocess.Popen[str]:
    """``pfc-NAME WORDS`` of this environment."""
    code = f"import sys; from lightning_pfc.commands.{name} import main; sys.exit(main())"
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], text=True, **options)


def service(log: Path, *words: str | Path, **options: Any) -> tuple[subprocess.Popen[str], str]:
    """``pfc-serve`` on a free port, and its host and port. It logs to a file, since a pipe that nobody reads fills up.

    Raises:
        RuntimeError: with what it said, if it does not start.
    """
    with log.open("w") as out:
        process = command("serve", *words, "--port", "0", stderr=out, **options)
    while not (text := log.read_text()).count("\n") and process.poll() is None:
        time.sleep(0.01)
    first = log.read_text().partition("\n")[0] or text
    if '"listening"' not in first:
        process.kill()
        process.wait()
        raise RuntimeError(f"the service did not start: {first}")
    return process, json.loads(first)["address"].removeprefix("http://")
