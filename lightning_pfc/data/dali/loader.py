"""The loader: reads a batch, has DALI decode and augment it while the one before is trained on, and hands it out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from lightning_pfc.data.batches import TrainingLoader
from lightning_pfc.data.dali.encoded import EncodedBatch, EncodedBatches
from lightning_pfc.data.dali.steps import operations_of


class DaliLoader(TrainingLoader):
    """Batches as :class:`~lightning_pfc.data.batches.TrainingLoader` yields them, made by DALI one batch ahead.

    On a GPU images and labels are there already.

    Args:
        dataset: the batches before they are decoded.
        num_workers: processes that read them; 0 reads in the training process.
        threads: of DALI.
        device: where batches are made and left.
        kwargs: further arguments of :class:`torch.utils.data.DataLoader`.
    """

    def __init__(
        self, dataset: EncodedBatches, num_workers: int = 0, *, threads: int, device: torch.device, **kwargs: Any
    ) -> None:
        self.threads = threads
        self.device = device
        self._encoded = dataset
        self._idle: _Decoder | None = None
        super().__init__(dataset, num_workers=num_workers, **kwargs)  # type: ignore[arg-type]

    def _batches(self) -> Iterator[Any]:
        decoder: _Decoder | None = None
        waiting: EncodedBatch | None = None
        for batch in super()._batches():
            if decoder is None:  # not earlier: processes that read are forked before DALI has threads
                decoder, self._idle = self._idle or _Decoder(self._encoded, self.threads, self.device), None
            done = None if waiting is None else self._finish(decoder, waiting)
            decoder.start(batch)
            waiting = batch
            if done is not None:
                yield done
        if decoder is not None and waiting is not None:
            done = self._finish(decoder, waiting)
            # For the next epoch. One that is left in the middle of an epoch holds a batch, and is never used again.
            self._idle = decoder
            yield done

    def _finish(self, decoder: _Decoder, batch: EncodedBatch) -> Any:
        try:
            images = decoder.take()
        except RuntimeError as error:
            raise self._encoded.refused(batch.number, error) from error
        targets = [target.to(images.device, non_blocking=True) for target in batch.targets]
        whole: Any = self._encoded.batches.finish(batch.number, images, *targets)
        return self.collate_fn(whole)  # the containers that the plain loader yields


class _Decoder:
    """Encoded images to (b, C, H, W) float32 in [-1, 1], one batch at a time.

    Args:
        batches: those that it will be given.
        threads: of DALI.
        device: where it works.
    """

    def __init__(self, batches: EncodedBatches, threads: int, device: torch.device) -> None:
        self._device = device
        index = None
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
        self._pipeline = _pipeline(
            batches, batch_size=batches.batches.plan.batch_size, num_threads=threads, device_id=index
        )
        self._pipeline.build()

    def start(self, batch: EncodedBatch) -> None:
        """Begin with a batch; returns at once."""
        images = np.split(batch.data.numpy(), np.cumsum(batch.sizes.numpy())[:-1])
        self._pipeline.feed_input("encoded", images)
        for name, values in batch.drawn.items():
            self._pipeline.feed_input(f"given_{name}", values.numpy())
        self._pipeline.schedule_run()

    def take(self) -> Tensor:
        """The images of the batch that was begun, once they are made. (b, C, H, W), channels last in memory.

        Raises:
            RuntimeError: what DALI says about the batch.
        """
        # Bound to the stream of the training: it waits for DALI, and DALI for it before the memory is used again.
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        (images,) = self._pipeline.outputs(cuda_stream=stream)
        out: Tensor = from_dlpack(images.as_tensor())
        return out.permute(0, 3, 1, 2)


def _pipeline(batches: EncodedBatches, **options: Any) -> Any:
    import nvidia.dali as dali
    from nvidia.dali import fn, types

    shape = batches.batches.images.image_shape
    operations = operations_of(batches.batches.augment, shape)

    # Its source is rewritten by DALI: an `if` over data divides the batch.
    @dali.pipeline_def(enable_conditionals=True, prefetch_queue_depth=1, **options)  # type: ignore[untyped-decorator]
    def define() -> Any:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        images = fn.decoders.image(
            encoded,
            device="cpu" if options["device_id"] is None else "mixed",
            output_type=types.RGB if shape[0] == 3 else types.GRAY,
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
        )
        if len(operations) > 0:
            images = fn.cast(images, dtype=types.FLOAT)
        for number, operation in operations:
            chosen = fn.external_source(name=f"given_{number}_chosen", dtype=types.BOOL, ndim=0)
            given = {name: fn.external_source(name=f"given_{number}_{name}") for name in operation.given}
            # Only the chosen images go through the operators: the others stay as they are to the bit.
            if chosen:
                images = operation.apply(dali, images, given, shape)
        mirror = fn.external_source(name="given_mirror", dtype=types.INT32, ndim=0)
        return fn.crop_mirror_normalize(
            images, mirror=mirror, scale=1 / 127.5, shift=-1.0, dtype=types.FLOAT, output_layout="HWC"
        )

    return define()
