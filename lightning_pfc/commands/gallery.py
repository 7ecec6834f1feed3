"""``pfc-gallery``: enrol identities, search them, look after them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_pfc.commands.output import may_be_cut_short
from lightning_pfc.commands.photo_words import add_photo_words, photos_of
from lightning_pfc.commands.pixels import add_max_pixels
from lightning_pfc.commands.running import run_command

if TYPE_CHECKING:
    from lightning_pfc.deploy.recogniser import Recogniser
    from lightning_pfc.gallery import Gallery
    from lightning_pfc.gallery.enrolling import PictureFile
    from lightning_pfc.gallery.records import Photos

_EPILOG = """examples
  pfc-gallery build staff photos/ --model runs/X/export
      a gallery of photos/anna/1.jpg, photos/anna/2.jpg, photos/bert/1.jpg; the model is remembered
  pfc-gallery add staff more-photos/
      the same for what is new; pictures that are there already are left alone, so a job that was killed begins again
  pfc-gallery add staff --name anna new.jpg
  pfc-gallery search staff someone.jpg --k 5
  pfc-gallery remove staff anna
      overwritten on the disk when the command returns
  pfc-gallery list staff; pfc-gallery info staff; pfc-gallery verify staff
  pfc-gallery export staff copy-of-staff
      a copy, while a service goes on with the gallery
  pfc-gallery reembed staff --model runs/Y/export --folder photos/
      another model; the old vectors serve until all pictures have new ones (--abort: stay with them)

A gallery is a folder with one SQLite file, or a database of PostgreSQL with the extension pgvector, given as
postgresql://HOST/DATABASE. Vectors are kept in float32; encryption of the disk is the file system's business."""


@may_be_cut_short
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    handler: Callable[[argparse.Namespace], int] = options.handler
    return run_command("pfc-gallery", lambda: handler(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pfc-gallery",
        description="A gallery of enrolled identities: nothing acknowledged is lost, nothing deleted is kept.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, handler: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=text)
        found.add_argument("gallery", metavar="GALLERY", help="folder of the gallery, or postgresql://...")
        found.set_defaults(handler=handler)
        return found

    build = command("build", _build, "make a gallery of a folder with one folder of pictures per identity")
    build.add_argument("folder", type=Path, help="folder of folders of pictures")
    build.add_argument("--model", type=Path, required=True, metavar="EXPORT", help="what pfc-export wrote")
    build.add_argument(
        "--pooling",
        choices=("max", "mean"),
        default="max",
        help="how the scores of an identity's pictures become one (default: max)",
    )
    add = command("add", _add, "enrol what is new in a folder, or pictures of one identity")
    add.add_argument(
        "pictures", type=Path, nargs="+", help="a folder of folders; with --name, pictures of that identity"
    )
    add.add_argument("--name", help="the identity that the pictures show")
    remove = command("remove", _remove, "forget identities, or single pictures")
    remove.add_argument("names", nargs="*", metavar="NAME", help="identities")
    remove.add_argument("--picture", type=int, action="append", default=[], metavar="N", help="a picture by its number")
    rename = command("rename", _rename, "call an identity otherwise")
    rename.add_argument("name", metavar="NAME")
    rename.add_argument("new", metavar="NEW")
    search = command("search", _search, "the identities nearest to a picture")
    search.add_argument("image", type=Path)
    search.add_argument("--k", type=int, default=5, help="how many (default: 5)")
    search.add_argument("--threshold", metavar="NAME", help="a threshold of the model by its name")
    search.add_argument("--json", action="store_true", help="for programs")
    for name, handler, text in (
        ("list", _list, "the identities with the numbers of their pictures"),
        ("info", _info, "figures of the gallery"),
        ("verify", _verify, "read all of it and say what is wrong; status 1 if anything is"),
        ("compact", _compact, "give back the room of what was deleted"),
    ):
        found = command(name, handler, text)
        if name == "info":
            found.add_argument("--json", action="store_true", help="for programs")
    export = command("export", _export, "copy the gallery as it is now, while others use it")
    export.add_argument("out", type=Path, metavar="OUT", help="folder of the copy")
    reembed = command("reembed", _reembed, "move the gallery to another model; killed, it goes on where it was")
    reembed.add_argument("--folder", type=Path, help="where the pictures lie that the gallery was built from")
    reembed.add_argument(
        "--from-previews", action="store_true", help="use the small images of pictures that are not in the folder"
    )
    reembed.add_argument(
        "--other-bytes", action="store_true", help="take files by their names, if they are not those that were enrolled"
    )
    reembed.add_argument("--abort", action="store_true", help="give up a move that was begun; the old vectors stay")
    reembed.add_argument("--model", type=Path, metavar="EXPORT", help="the next model")
    for one in (add, search):
        one.add_argument("--model", type=Path, metavar="EXPORT", help="default: the one it was made with")
    for one in (build, add):
        one.add_argument("--no-previews", action="store_true", help="keep no small images of the pictures")
        one.add_argument(
            "--allow", type=Path, action="append", default=[], metavar="FOLDER", help="links may lead into it too"
        )
    for one in (build, add, search, reembed):
        one.add_argument("--engine", help="onnxruntime, openvino or torch (default: what the export was made for)")
        add_photo_words(one, "largest face", "" if one is build else " (default: as the gallery was built)")
        add_max_pixels(one)
    return parser


# --- commands ---------------------------------------------------------------------------------------------------------


def _build(options: argparse.Namespace) -> int:
    from lightning_pfc.commands.gallery_enrolling import enrol, one_at_least
    from lightning_pfc.gallery.addresses import create_gallery
    from lightning_pfc.gallery.enrolling import model_record
    from lightning_pfc.gallery.errors import GalleryError

    images = _folder(options.folder, options.allow)
    photos = photos_of(options)
    recogniser = _recogniser(options.model, options, photos)
    one_at_least(recogniser, images)
    with create_gallery(options.gallery, model_record(recogniser), options.pooling, photos) as gallery:
        try:
            return enrol(gallery, recogniser, images, not options.no_previews)
        except GalleryError as error:
            raise type(error)(
                f"{error} The gallery is begun; go on with `pfc-gallery add {options.gallery} {options.folder}`."
            ) from error


def _add(options: argparse.Namespace) -> int:
    from lightning_pfc.commands.gallery_enrolling import enrol
    from lightning_pfc.gallery.enrolling import PictureFile

    with _gallery(options) as gallery:
        if options.name is not None:
            images = [PictureFile.named(options.name, path) for path in options.pictures]
        elif len(options.pictures) == 1 and options.pictures[0].is_dir():
            images = _folder(options.pictures[0], options.allow)
        else:
            raise ValueError("add takes a folder of folders, or --name NAME and pictures.")
        return enrol(gallery, _model_of(gallery, options), images, not options.no_previews)


def _remove(options: argparse.Namespace) -> int:
    if not options.names and not options.picture:
        raise ValueError("nothing to remove: give names, or --picture N.")
    with _gallery(options) as gallery:
        for name in options.names:
            gallery.remove(name)
            print(f"removed {name}")
        for picture in options.picture:
            gallery.remove_picture(picture)
            print(f"removed picture {picture}")
    return 0


def _rename(options: argparse.Namespace) -> int:
    with _gallery(options) as gallery:
        gallery.store.rename(options.name, options.new)
    return 0


def _search(options: argparse.Namespace) -> int:
    from lightning_pfc.gallery.deciding import decide

    with _gallery(options, for_reading=True) as gallery:
        recogniser = _model_of(gallery, options)
        row = recogniser.embed(options.image)[0]
        found = decide(gallery.search(row, options.k), recogniser, options.threshold)
    if options.json:
        print(json.dumps({"matches": [dataclasses.asdict(one) for one in found]}))
        return 0
    for one in found:
        verdict = {None: "", True: "  same", False: "  not the same"}[one.same]
        print(f"{one.score:7.4f}  {one.identity}{verdict}")
    if found and found[0].threshold is None:
        print(
            "The model was never calibrated, so nothing says which score is enough: `pfc-eval ... calibrate.far=1e-4`."
        )
    return 0


def _list(options: argparse.Namespace) -> int:
    with _gallery(options, for_reading=True) as gallery:
        last = ""
        while page := gallery.store.identities(last):
            for one in page:
                print(f"{one.name}\t{','.join(map(str, one.pictures))}")
            last = page[-1].name
    return 0


def _info(options: argparse.Namespace) -> int:
    from lightning_pfc.gallery.addresses import who_else_may_read

    with _gallery(options, for_reading=True) as gallery:
        found: dict[str, Any] = dataclasses.asdict(gallery.info())
        photos = gallery.store.photos
    if options.json:
        print(json.dumps(found))
        return 0
    model = found.pop("model")
    for name, value in {
        **found,
        "model": model["sha256"][:12],
        "width": model["width"],
        "export": model["source"],
    }.items():
        print(f"{name.replace('_', ' '):14} {value:,}" if isinstance(value, int) else f"{name:14} {value}")
    if photos is not None and photos.taken:
        print(f"pictures are photos, whose faces are found by {photos.detector or 'the detector of the export'}")
    if (readers := who_else_may_read(options.gallery)) is not None:
        print(f"may be read by {readers}; `chmod go= {options.gallery}/gallery.sqlite3*` keeps others out")
    return 0


def _verify(options: argparse.Namespace) -> int:
    with _gallery(options, for_reading=True) as gallery:
        faults = gallery.store.verify()
        identities, pictures = gallery.store.count()
    for fault in faults[:100]:
        print(fault)
    print(f"{pictures} pictures of {identities} identities read: {len(faults)} faults")
    return 1 if faults else 0


def _compact(options: argparse.Namespace) -> int:
    with _gallery(options) as gallery:
        before = gallery.store.bytes_on_disk()
        gallery.store.compact()
        print(f"{before:,} bytes before, {gallery.store.bytes_on_disk():,} now")
    return 0


def _export(options: argparse.Namespace) -> int:
    with _gallery(options, for_reading=True) as gallery:
        gallery.store.backup(options.out)
    print(f"copied to {options.out}")
    return 0


def _reembed(options: argparse.Namespace) -> int:
    from lightning_pfc.commands.gallery_enrolling import progress
    from lightning_pfc.gallery.reembedding import reembed

    if (options.model is None) != options.abort:
        raise ValueError("reembed takes --model EXPORT, or --abort to stay with the model that serves.")
    with _gallery(options) as gallery:
        if options.abort:
            gallery.store.abort_next()
            print(f"{options.gallery} stays with the model that serves")
            return 0
        recogniser = _recogniser(options.model, options, photos_of(options, gallery.store.photos))
        _, pictures = gallery.store.count()
        missing: list[str] = []
        sources = options.folder, options.from_previews
        for _ in progress(reembed(gallery, recogniser, *sources, missing, options.other_bytes), pictures):
            pass
        if missing:
            for line in missing[:20]:
                print(line, file=sys.stderr)
            raise ValueError(
                f"{len(missing)} pictures could not be read again; the old model goes on to serve. Give --folder (and "
                "--from-previews), or remove them with `pfc-gallery remove --picture N`; what is done is kept."
            )
        gallery.store.adopt_next()
    print(f"{pictures} pictures have vectors of {options.model}")
    return 0


# --- helpers ----------------------------------------------------------------------------------------------------------


def _gallery(options: argparse.Namespace, *, for_reading: bool = False) -> Gallery:
    from lightning_pfc.gallery.addresses import open_gallery

    return open_gallery(options.gallery, for_reading=for_reading)


def _recogniser(export: Path, options: argparse.Namespace, photos: Photos) -> Recogniser:
    from lightning_pfc.deploy.recogniser import Recogniser

    detector = photos.detector or None
    return Recogniser.load(
        export, options.engine, photos=photos.taken, detector=detector, max_pixels=options.max_pixels
    )


def _model_of(gallery: Gallery, options: argparse.Namespace) -> Recogniser:
    from lightning_pfc.gallery.enrolling import model_record

    known = gallery.store.model
    source = options.model or (Path(known.source) if known.source else None)
    if source is None or not source.exists():
        raise ValueError(f"the gallery's model is not at {known.source or 'any place'} any more; give --model EXPORT.")
    recogniser = _recogniser(source, options, photos_of(options, gallery.store.photos))
    gallery.check_model(model_record(recogniser))
    return recogniser


def _folder(folder: Path, allow: list[Path]) -> list[PictureFile]:
    from lightning_pfc.data.formats.folder import FolderImages
    from lightning_pfc.gallery.enrolling import PictureFile

    return list(PictureFile.found_in(FolderImages(folder, allow=allow)))


if __name__ == "__main__":
    sys.exit(main())
