"""How the commands of a gallery enrol: what is shown meanwhile, and what is told at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from lightning_pfc.commands.running import one_line
from lightning_pfc.deploy.recogniser import Recogniser
from lightning_pfc.gallery import Gallery
from lightning_pfc.gallery.enrolling import Candidate, EnrolReport, PictureFile, enrol_all, read_candidate
from lightning_pfc.gallery.names import check_name


def one_at_least(recogniser: Recogniser, images: list[PictureFile]) -> None:
    """Raise what is wrong with the first picture if none can be enrolled: an empty gallery would be in the way."""
    faults = (_fault(recogniser, image) for image in images)
    first = next(faults, None)
    if first is None or any(fault is None for fault in faults):
        return
    raise ValueError(f"no picture could be enrolled, and no gallery was made. The first one: {first}")


def _fault(recogniser: Recogniser, image: PictureFile) -> str | None:
    try:
        check_name(image.identity)
        recogniser.prepare(image.read())
    except ValueError as error:
        return str(error) if str(image.path) in str(error) else f"{image.path}: {error}"
    return None


def enrol(gallery: Gallery, recogniser: Recogniser, images: list[PictureFile], previews: bool) -> int:
    """Enrol pictures by the names of their identities, and say what became of them; returns an exit status."""
    report = EnrolReport()

    def candidates() -> Iterator[Candidate]:
        for image in images:
            candidate = read_candidate(image, report)
            if candidate is not None:
                yield candidate

    done = enrol_all(gallery, recogniser, candidates(), report, previews)
    for _ in progress(done, len(images)):
        pass
    return _tell(gallery, report)


def _tell(gallery: Gallery, report: EnrolReport) -> int:
    for line in report.broken[:20]:
        print(f"left out: {one_line(line)}", file=sys.stderr)
    if len(report.broken) > 20:
        print(f"left out: {len(report.broken) - 20} more", file=sys.stderr)
    identities, pictures = gallery.store.count()
    known = f", {report.known} were there already" if report.known else ""
    broken = f", {len(report.broken)} could not be read" if report.broken else ""
    print(f"{report.enrolled} pictures enrolled{known}{broken}; the gallery has {pictures} of {identities} identities")
    if not report.enrolled and not report.known:
        raise ValueError("no picture could be enrolled.")
    return 0


def progress(sizes: Iterable[int], total: int) -> Iterator[int]:
    """``sizes`` with a bar of how many of ``total`` pictures they make."""
    with tqdm(total=total, unit=" pictures", disable=None) as bar:
        for size in sizes:
            bar.update(size)
            yield size
