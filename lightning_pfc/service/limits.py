"""What a request may ask for; all of it is looked at before a picture is decoded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of the service.

    Attributes:
        body: bytes of a request.
        image: bytes of one encoded picture.
        pixels: of one picture, as its header says.
        pictures: in one request.
        faces: in one photo; the largest is taken, and more are an error, since nobody knows who is meant.
        queue: pictures that wait for the network, of all requests.
        bodies: bytes of all requests that are held at a time.
        per_client: requests at a time of one key, or of one address where there are no keys.
        body_seconds: until a request has arrived whole.
        seconds: until it is answered.
        k: answers of a search.
    """

    body: int = 32 << 20
    image: int = 10 << 20
    pixels: int = 50_000_000
    pictures: int = 64
    faces: int = 1
    queue: int = 1024
    bodies: int = 512 << 20
    per_client: int = 64
    body_seconds: float = 20.0
    seconds: float = 30.0
    k: int = 100

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name}={value} must be above 0.")
