"""The kernel of the head: tensors in, tensors out, over classes that are sharded over ranks.

It knows no ``nn.Module``, no loss and no sampler; see :mod:`lightning_pfc.heads.softmax.spec` for what it is told.
"""

from lightning_pfc.heads.softmax.interface import sharded_softmax
from lightning_pfc.heads.softmax.spec import SampledRows, SoftmaxSpec, SoftmaxSums

__all__ = ["SampledRows", "SoftmaxSpec", "SoftmaxSums", "sharded_softmax"]
