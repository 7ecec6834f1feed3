"""What options of ``pfc-data overlap`` are where nobody gave them; None of the parser tells that nobody did."""

from __future__ import annotations

from typing import Any

DEFAULTS: dict[str, Any] = {"near": 24, "same_picture": "0.95", "batch_size": 64}
