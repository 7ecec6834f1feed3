"""Tests of this folder run kernels in Triton's interpreter, which is chosen when Triton is imported: another process.

``tests/unit/test_kernels_interpreted.py`` starts it, with ``TRITON_INTERPRET=1``. Without that nothing is collected.
"""

from __future__ import annotations

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    collect_ignore_glob = []
    from tests.interpreted import patched_once

    patched_once.install()
else:
    collect_ignore_glob = ["test_*.py"]
