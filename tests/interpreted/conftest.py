"""Tests of this folder run kernels in Triton's interpreter, which is chosen when Triton is imported: another process.

``tests/unit/test_kernels_interpreted.py`` starts it, with ``TRITON_INTERPRET=1``. Without that nothing is collected.
"""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
