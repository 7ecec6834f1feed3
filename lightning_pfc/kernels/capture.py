"""Whether what runs now is written down as a CUDA graph, to be replayed without Python."""

from __future__ import annotations

import torch


def capturing(device: torch.device) -> bool:
    """Whether the work of this thread on ``device`` is being captured: nobody may wait for it then."""
    return device.type == "cuda" and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
