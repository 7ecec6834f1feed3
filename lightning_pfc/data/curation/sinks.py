"""Writers of each format, all resumable: what a conversion pours images into."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from lightning_pfc.data.curation.names import image_names, image_suffix
from lightning_pfc.data.errors import BrokenImageError, missing_library
from lightning_pfc.data.formats.base import EncodedImages
from lightning_pfc.data.formats.recordio_writer import RecordWriter, pack_image, pack_range
from lightning_pfc.data.pictures.decoding import decode
from lightning_pfc.storage.whole_files import write_whole

ROW_GROUP = 64  # rows; a shuffled read fetches a whole group


class Sink(ABC):
    """Receives images in a fixed order; a new object on the same folder finds out how far an earlier one came.

    Args:
        images: what is converted.
        order: ``(N,)`` positions in ``images``, in the order of writing.
        work: the folder to write into.
        renamed: names by class, where the format cannot hold the identity's own.
    """

    def __init__(
        self,
        images: EncodedImages,
        order: npt.NDArray[np.int64],
        work: Path,
        *,
        renamed: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        self.images = images
        self.order = order
        self.work = work
        self.renamed = renamed
        self.done = 0  # images written for good, so where to go on

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Takes the bytes of the next image."""

    def finish(self) -> None:  # noqa: B027 (most formats have nothing to add)
        """Writes what comes after the last image."""

    def close(self) -> None:  # noqa: B027
        """Lets go of open files; what was written stays for the next attempt."""

    def _identity(self, position: int) -> int:
        """The number stored as label: the data's own where identities are numbers, the class otherwise."""
        label = int(self.images.labels[position])
        return int(self.images.identities[label]) if self._numeric else label

    def _name(self, label: int) -> str:
        """The name of a class as it is written."""
        return self.renamed.get(label, str(self.images.identities[label]))

    @property
    def _numeric(self) -> bool:
        return bool(self.images.identities.dtype.kind in "iu" and self.images.identities[0] >= 0)

    def _write_names(self, path: Path) -> None:
        """Names of the identities, a line each, where they are not numbers."""
        if not self._numeric:
            with write_whole(path, "w", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{self._name(label)}\n" for label in range(self.images.num_classes))


class RecordSink(Sink):
    """RecordIO, with InsightFace's header and identity records, or flat."""

    def __init__(
        self, images: EncodedImages, order: npt.NDArray[np.int64], work: Path, *, layout: str, **options: Any
    ) -> None:
        super().__init__(images, order, work, **options)
        self.headered = layout == "headered"
        self.writer = RecordWriter(work / "train.rec", resume=True)
        self.first = 1 if self.headered else 0
        if self.headered and self.writer.next_key == 0:
            start = len(order) + 1
            self.writer.write(pack_range(start, start + images.num_classes, key=0))
        self.done = min(self.writer.next_key - self.first, len(order))

    def write(self, data: bytes) -> None:  # noqa: D102
        position = int(self.order[self.writer.next_key - self.first])
        self.writer.write(pack_image(self._identity(position), data, key=self.writer.next_key))

    def finish(self) -> None:  # noqa: D102
        if self.headered:
            # The order goes by class, so each class is one range of keys.
            counts = np.bincount(self.images.labels, minlength=self.images.num_classes)
            ends = np.cumsum(counts) + 1
            for label in range(self.writer.next_key - len(self.order) - 1, self.images.num_classes):
                start, stop = int(ends[label] - counts[label]), int(ends[label])
                self.writer.write(pack_range(start, stop, key=self.writer.next_key))
        self.writer.close()
        self._write_names(self.work / "train.names.txt")
        self._write_property(self.work / "property")

    def _write_property(self, path: Path) -> None:
        """Number of classes, height and width, as InsightFace's tools expect them; not if the first image is broken."""
        place = int(self.order[0])
        try:
            height, width, _ = decode(self.images.read(place)).shape
        except BrokenImageError:
            return
        numbers = self.images.identities
        classes = int(numbers[-1]) + 1 if self._numeric else self.images.num_classes
        path.write_text(f"{classes},{height},{width}\n")

    def close(self) -> None:  # noqa: D102
        self.writer.close()


class FolderSink(Sink):
    """A folder of folders, and with ``as_list`` also ``list.tsv`` beside it."""

    def __init__(
        self, images: EncodedImages, order: npt.NDArray[np.int64], work: Path, *, as_list: bool = False, **options: Any
    ) -> None:
        super().__init__(images, order, work, **options)
        self.names = image_names(images)
        self.root = work / "images" if as_list else work
        self.count = work.with_name(work.name + ".count")
        self.done = int(self.count.read_text()) if self.count.is_file() else 0
        self.next = self.done
        self.lines = self._open_list() if as_list else None

    def _open_list(self) -> BinaryIO:
        """The list, cut off behind the lines of the images that count as done."""
        path = self.work / "list.tsv"
        file = path.open("rb+" if path.is_file() and self.done else "wb+")
        if self.done == 0:
            file.write(b"path\tlabel\n")
        else:
            for _ in range(self.done + 1):
                file.readline()
            file.seek(file.tell())
            file.truncate()
        return file

    def write(self, data: bytes) -> None:  # noqa: D102
        position = int(self.order[self.next])
        path = f"{self.names[position]}{image_suffix(data)}"
        final = self.root / path
        final.parent.mkdir(parents=True, exist_ok=True)
        final.write_bytes(data)
        if self.lines is not None:
            name = self._name(int(self.images.labels[position]))
            self.lines.write(f"images/{path}\t{name}\n".encode())
        self.next += 1
        if self.next % 256 == 0:
            self._note()

    def _note(self) -> None:
        if self.lines is not None:
            self.lines.flush()
        with write_whole(self.count, "w") as file:
            file.write(str(self.next))
        self.done = self.next

    def finish(self) -> None:  # noqa: D102
        self.next = self.done = len(self.order)
        self.close()
        self.count.unlink(missing_ok=True)

    def close(self) -> None:  # noqa: D102
        if self.done < self.next:
            self._note()
        if self.lines is not None:
            self.lines.close()


class ShardSink(Sink):
    """Files of a fixed number of images each, of which every one appears whole."""

    def __init__(self, images: EncodedImages, order: npt.NDArray[np.int64], work: Path, *, shard_size: int) -> None:
        super().__init__(images, order, work)
        self.shard_size = shard_size
        self.num_shards = -(-len(order) // shard_size)
        self.shard = 0
        while self.shard < self.num_shards and self._path(self.shard).is_file():
            self.shard += 1
        self.done = min(self.shard * shard_size, len(order))
        self.held: list[bytes] = []

    @abstractmethod
    def _path(self, shard: int) -> Path:
        """Where a shard goes."""

    @abstractmethod
    def _write_shard(self, path: Path, positions: list[int], data: list[bytes]) -> None:
        """Writes the images of a shard."""

    def write(self, data: bytes) -> None:  # noqa: D102
        self.held.append(data)
        start = self.shard * self.shard_size
        if len(self.held) == min(self.shard_size, len(self.order) - start):
            final = self._path(self.shard)
            final.parent.mkdir(parents=True, exist_ok=True)
            partial = final.with_name(final.name + ".partial")
            self._write_shard(partial, self.order[start : start + len(self.held)].tolist(), self.held)
            os.replace(partial, final)
            self.held = []
            self.shard += 1
            self.done = min(self.shard * self.shard_size, len(self.order))


class ParquetSink(ShardSink):
    """Parquet files that pyarrow reads, and ``datasets`` as a data set with images and class names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise missing_library("pyarrow", "Writing parquet files") from error
        self.pa, self.pq = pa, pq
        super().__init__(*args, **kwargs)
        label: dict[str, Any] = {"dtype": "int64", "_type": "Value"}
        if not self._numeric:
            label = {"names": [str(name) for name in self.images.identities.tolist()], "_type": "ClassLabel"}
        features = {"image": {"_type": "Image"}, "label": label}
        self.schema = pa.schema(
            [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
            metadata={"huggingface": json.dumps({"info": {"features": features}})},
        )

    def _path(self, shard: int) -> Path:
        return self.work / "data" / f"train-{shard:05d}-of-{self.num_shards:05d}.parquet"

    def _write_shard(self, path: Path, positions: list[int], data: list[bytes]) -> None:
        rows = [
            {"bytes": item, "path": f"{self.images.name(position)}{image_suffix(item)}"}
            for position, item in zip(positions, data, strict=True)
        ]
        labels = [self._identity(position) for position in positions]
        table = self.pa.Table.from_pydict({"image": rows, "label": labels}, schema=self.schema)
        # Encoded images do not shrink any further.
        self.pq.write_table(table, path, row_group_size=ROW_GROUP, compression="none")


class WebDatasetSink(ShardSink):
    """WebDataset shards: an image, its class as ``.cls`` and, where identities are text, its name in ``.json``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            from webdataset import TarWriter
        except ImportError as error:
            raise missing_library("webdataset", "Writing WebDataset shards") from error
        self.tar_writer = TarWriter
        super().__init__(*args, **kwargs)

    def _path(self, shard: int) -> Path:
        return self.work / f"shard-{shard:06d}.tar"

    def _write_shard(self, path: Path, positions: list[int], data: list[bytes]) -> None:
        with path.open("wb") as file, self.tar_writer(file, encoder=False, mtime=0.0) as shard:
            for position, item in zip(positions, data, strict=True):
                sample: dict[str, Any] = {"__key__": f"{position:09d}", image_suffix(item)[1:]: item}
                sample["cls"] = str(self._identity(position)).encode()
                if not self._numeric:
                    name = str(self.images.identities[int(self.images.labels[position])])
                    sample["json"] = json.dumps({"identity": name}).encode()
                shard.write(sample)
