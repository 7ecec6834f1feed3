"""A service on a real socket, in a thread of the tests' own process."""

from __future__ import annotations

import base64
import io
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from lightning_pfc.calibration import Threshold, Thresholds
from lightning_pfc.deploy import Recogniser
from lightning_pfc.gallery import Gallery
from lightning_pfc.gallery.enrolling import model_record
from lightning_pfc.service.app import create_app
from lightning_pfc.service.keys import Keys
from lightning_pfc.service.limits import Limits
from lightning_pfc.service.server import listening_socket
from lightning_pfc.service.state import ServiceState
from lightning_pfc.service.telemetry import Telemetry

CALIBRATED = Threshold(name="far=1e-2", kind="verification", value=0.5, rate=0.01, interval=(0.005, 0.02))


class Running:
    """A service on a real socket in a thread of this process."""

    def __init__(
        self,
        export: Path,
        gallery: Path | None,
        *,
        keys: Keys | None = None,
        calibrated: bool = True,
        photos: Path | None = None,
        **limits: Any,
    ):
        recogniser = Recogniser.load(export, threads=1, photos=photos is not None, detector=photos)
        if calibrated:
            known = recogniser.description.changed(thresholds=Thresholds({CALIBRATED.name: CALIBRATED}))
            recogniser = Recogniser(recogniser.network, known, recogniser.folder, cutter=recogniser.cutter)
        self.log = io.StringIO()
        self.recogniser, self.keys = recogniser, keys or Keys()
        opened = None
        if gallery is not None:
            made = gallery.exists()
            opened = Gallery.open(gallery) if made else Gallery.create(gallery, model_record(recogniser))
        self.state = ServiceState(recogniser, opened, Limits(**limits), Telemetry(self.log))
        sock = listening_socket("127.0.0.1", 0)
        self.address = sock.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        from lightning_pfc.service import server

        self.config = server.configured(create_app(self.state, lambda: self.keys))
        self._server = server.Server(self.config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [sock]}, daemon=True)
        self._thread.start()
        self.client = httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def close(self) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def unit(rows: Any) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)
