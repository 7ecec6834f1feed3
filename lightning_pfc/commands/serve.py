"""``pfc-serve``: a recogniser and its gallery over HTTP."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_pfc.commands.imports import large_imports
from lightning_pfc.commands.output import may_be_cut_short
from lightning_pfc.commands.photo_words import add_photo_words, photos_of
from lightning_pfc.commands.running import run_command

if TYPE_CHECKING:
    from lightning_pfc.gallery import Photos

_EPILOG = """examples
  pfc-serve runs/X/export --gallery staff
      then http://127.0.0.1:8000/ is a page to try it, /openapi.json describes every request
  curl -s -F image=@anna.jpg http://127.0.0.1:8000/embed
  pfc-serve runs/X/export --gallery staff --make-key door --scopes read
      prints a key, once; with the first key every request needs one
  pfc-serve runs/X/export --gallery staff --host 0.0.0.0 --tls cert.pem key.pem

Without keys it answers this machine only (or give --insecure). Thresholds come from the export, by name. SIGTERM lets
requests under way finish."""


@may_be_cut_short
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    return run_command("pfc-serve", lambda: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pfc-serve",
        description="Serve an exported model: embed, compare, search, enrol; with a page to try it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("export", type=Path, metavar="EXPORT", help="what pfc-export wrote")
    parser.add_argument("--gallery", help="of pfc-gallery; without one there is embed and compare only")
    parser.add_argument(
        "--read-only", action="store_true", help="search the gallery and change nothing; several services may do so"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument("--engine", help="onnxruntime, openvino or torch (default: what the export was made for)")
    parser.add_argument("--threads", type=int, default=0, help="of one call of the network; 0: the engine chooses")
    add_photo_words(parser, "face", " (default: as the gallery was built)")
    parser.add_argument("--keys", type=Path, metavar="FILE", help="file of keys (default: keys.json in the gallery)")
    parser.add_argument("--make-key", metavar="NAME", help="make a key, print it, and end")
    parser.add_argument("--remove-key", metavar="NAME", help="remove a key, and end")
    parser.add_argument(
        "--scopes", default="read", help="of the new key, with commas: read, enrol, admin (default: read)"
    )
    parser.add_argument("--insecure", action="store_true", help="listen beyond this machine without any key")
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"), help="PEM files; or leave TLS to a proxy")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds for requests under way at the end (30)")
    for name, text in (
        ("body", "bytes of a request"),
        ("image", "bytes of a picture"),
        ("pixels", "pixels of a picture"),
        ("pictures", "pictures in a request"),
        ("faces", "faces in a photo, of which the largest is taken (1)"),
        ("queue", "pictures that wait for the network"),
        ("per-client", "requests at a time of one client"),
    ):
        parser.add_argument(f"--max-{name}", type=int, metavar="N", help=f"{text}, at most")
    return parser


def _run(options: argparse.Namespace) -> int:
    path = _key_file(options)
    if options.make_key is not None or options.remove_key is not None:
        return _change_keys(path, options)
    return _serve(path, options)


def _key_file(options: argparse.Namespace) -> Path | None:
    if options.keys is not None:
        return Path(options.keys)
    if options.gallery is not None and "://" not in options.gallery:
        if Path(options.gallery).is_file():
            raise ValueError(f"--gallery {options.gallery} is a file; give the folder that pfc-gallery build made.")
        return Path(options.gallery) / "keys.json"
    return None


def _change_keys(path: Path | None, options: argparse.Namespace) -> int:
    from lightning_pfc.service.keys import Keys

    if path is None:
        raise ValueError("keys are kept beside a gallery; without one give --keys FILE.")
    keys = Keys.read(path)
    if options.remove_key is not None:
        left = keys.without(options.remove_key)
        left.write(path)
        print(f"removed key {options.remove_key}", file=sys.stderr)
        if not len(left):
            print(
                "No key is left: a service that runs answers nobody, one that starts now needs none.", file=sys.stderr
            )
        return 0
    keys, secret = keys.with_new(options.make_key, [scope.strip() for scope in options.scopes.split(",")])
    keys.write(path)
    print(secret)
    print(f"This is shown once; {path} keeps its hash only. A service that runs knows it at once.", file=sys.stderr)
    return 0


def _serve(path: Path | None, options: argparse.Namespace) -> int:
    with large_imports():
        from lightning_pfc.deploy.recogniser import Recogniser
        from lightning_pfc.gallery.addresses import open_gallery
        from lightning_pfc.gallery.enrolling import model_record
        from lightning_pfc.service.app import create_app
        from lightning_pfc.service.key_file import KeyFile
        from lightning_pfc.service.limits import Limits
        from lightning_pfc.service.lock import service_lock
        from lightning_pfc.service.server import address_of, check_tls, is_loopback, listening_socket, serve
        from lightning_pfc.service.state import ServiceState
        from lightning_pfc.service.telemetry import Telemetry
        from lightning_pfc.service.whole_log import whole_log

    if options.read_only and options.gallery is None:
        raise ValueError("--read-only is about a gallery; give --gallery, or leave it out.")
    keys = KeyFile(path)
    if options.keys is not None and not options.keys.exists():
        raise ValueError(
            f"--keys {options.keys}: no such file; make a key with --make-key NAME first, or leave it out."
        )
    if not is_loopback(options.host) and not len(keys()) and not options.insecure:
        raise ValueError(
            f"host={options.host} is reached from other machines, and there are no keys: make one with "
            "--make-key NAME, or give --insecure."
        )
    if not 0 <= options.port < 1 << 16:
        raise ValueError(f"--port {options.port} must be 1 to 65535, or 0 for a free one.")
    if not 0 <= options.grace < float("inf"):
        raise ValueError(f"--grace {options.grace} must be seconds, 0 or more.")
    if options.tls is not None:
        check_tls(*options.tls)
    limits = Limits(**_limits(options))
    photos = photos_of(options, None if options.gallery is None else _remembered(options.gallery))
    recogniser = Recogniser.load(
        options.export,
        options.engine,
        threads=options.threads,
        photos=photos.taken,
        detector=photos.detector or None,
    )
    sock = listening_socket(options.host, options.port)
    telemetry = Telemetry()
    with service_lock(None if options.read_only else options.gallery), whole_log(telemetry):
        gallery = None
        if options.gallery is not None:
            gallery = open_gallery(options.gallery, for_reading=options.read_only)
            gallery.check_model(model_record(recogniser))
            gallery.warm_up()
        state = ServiceState(recogniser, gallery, limits, telemetry, read_only=options.read_only)
        telemetry.event("listening", address=address_of(sock, "https" if options.tls else "http"), keys=len(keys()))
        serve(create_app(state, keys), sock, grace=options.grace, tls=tuple(options.tls) if options.tls else None)
        telemetry.event("ended")
    return 0


def _remembered(address: str) -> Photos | None:
    from lightning_pfc.gallery.addresses import open_gallery

    with open_gallery(address, for_reading=True) as gallery:
        return gallery.store.photos


def _limits(options: argparse.Namespace) -> dict[str, int]:
    names = ("body", "image", "pixels", "pictures", "faces", "queue", "per_client")
    return {name: value for name in names if (value := getattr(options, f"max_{name}")) is not None}


if __name__ == "__main__":
    sys.exit(main())
