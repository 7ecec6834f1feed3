"""Pictures of a small set are decoded once, and are what they were."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from lightning_pfc.data.formats.kept import KeptPictures


class Decoder:
    """Counts; every other picture is not in the room that was given."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, place: int, room: Any) -> Any:
        self.asked.append(place)
        if place % 2:
            return np.full(room.shape, place, np.uint8)
        room[...] = place
        return room


@pytest.mark.parametrize(("most", "decoded"), [(5 * 12, [3, 0, 4, 1]), (5 * 12 - 1, [3, 0, 3, 4, 3, 1, 0])])
def test_decoded_once_where_there_is_room(most: int, decoded: list[int]) -> None:
    kept, decode = KeptPictures(5, (2, 2, 3), most), Decoder()
    for index in ([3, 0, 3], [4, 3], [1, 0]):
        batch = kept.fetch(np.asarray(index), decode)
        assert batch.shape == (len(index), 2, 2, 3)
        assert batch[:, 1, 1, 2].tolist() == index
        assert (batch == batch[:, :1, :1, :1]).all()
        batch[...] = 99  # of the caller alone
    assert decode.asked == decoded


def test_another_process_decodes_its_own() -> None:
    kept, decode = KeptPictures(5, (2, 2, 3)), Decoder()
    kept.fetch(np.arange(5), decode)
    text = pickle.dumps(kept)
    assert len(text) < 500
    pickle.loads(text).fetch(np.arange(5), decode)
    assert decode.asked == [0, 1, 2, 3, 4] * 2


def test_a_picture_that_fails_is_tried_again() -> None:
    kept = KeptPictures(2, (1, 1, 1))

    def broken(place: int, room: Any) -> Any:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        kept.fetch(np.asarray([1]), broken)
    assert kept.fetch(np.asarray([1]), Decoder()).item() == 1


def test_workers_share_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    class Worker:
        num_workers = 3

    monkeypatch.setattr("lightning_pfc.data.formats.kept.get_worker_info", lambda: Worker)
    kept, decode = KeptPictures(5, (2, 2, 3), 3 * 5 * 12 - 1), Decoder()
    kept.fetch(np.asarray([0, 0]), decode)
    assert decode.asked == [0, 0]
