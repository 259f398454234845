"""Manifests of videos in tar files, such as the shards of a WebDataset."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from cmd_extract.errors import ManifestError, VideoError
from cmd_extract.manifest.sources import (
    ManifestSource,
    SourceVideo,
    absolute_folder,
    assemble,
    ids_of_paths,
    is_video_name,
    usable_name,
)
from cmd_extract.manifest.table import visible_files
from cmd_extract.sources.access import read_archive
from cmd_extract.sources.limits import SourceLimits
from cmd_extract.sources.location import RemoteFile, TarMember, is_tar_name
from cmd_extract.sources.tar import TarIndex

TAR_GLOB = "*.tar"
_ARCHIVES_AT_ONCE = 16


def from_tar(source: Path, *, root: Path) -> ManifestSource:
    """List the videos in a tar file, or in all tar files of a folder; see ``from_archives``.

    Args:
        source: a tar file, or a folder.
        root: folder that paths in the manifest are relative to.

    Raises:
        ManifestError: there are no tar files or no videos in them, or one is damaged or compressed.
    """
    archives = [source] if source.is_file() else visible_files(source, TAR_GLOB)
    if not archives:
        raise ManifestError(f"{source}: contains no tar files ({TAR_GLOB}); check the path")
    base = absolute_folder(source.parent if source.is_file() else source)
    return from_archives(source, [base / path.name for path in archives], root=root)


def from_archives(
    source: Path | RemoteFile,
    archives: Sequence[Path | RemoteFile],
    *,
    root: Path,
    limits: SourceLimits | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ManifestSource:
    """List the videos in tar files, in the order of the archives and their members.

    The label is the first folder in the archive. Without folders, it is the text of the file of the same sample (the
    same name up to the first dot) with the extension ``.cls``, if there is one, as in a WebDataset. Ids are names in
    the archive without extension, after the name of the archive if there are several. Of remote archives, only the
    headers and these files are read.

    Args:
        source: what the user gave, for messages.
        archives: at least one.
        root: folder that paths in the manifest are relative to.
        limits: time limit and retries of requests.
        progress: called with the number of archives read and their total.

    Raises:
        ManifestError: there are no videos in the archives, or one cannot be read, is damaged or compressed.
    """
    for archive in archives:
        if not is_tar_name(str(archive)):  # the manifest's syntax for members would not recognize it
            raise ManifestError(f"{archive}: the path or URL of a tar file must end in .tar; rename or copy it")
    found: list[SourceVideo] = []
    others = links = 0
    for archive, index in zip(archives, _read_archives(archives, limits or SourceLimits(), progress), strict=True):
        names = [name for name in index.members if not _is_hidden(name)]
        videos = [name for name in names if is_video_name(name)]
        classes = {_sample(name): index.contents[name] for name in names if _is_class(name)}
        prefix = f"{PurePosixPath(str(archive)).stem}/" if len(archives) > 1 else ""
        for name, video_id in zip(videos, ids_of_paths(videos), strict=True):
            found.append(
                SourceVideo(
                    place=f"{archive}, member {name!r}",
                    file=TarMember(archive, name),
                    video_id=usable_name(prefix) + video_id,
                    label=_label(name, classes.get(_sample(name), b"")),
                )
            )
        others += len(index.members) - len(videos) - len(classes)
        links += len(index.others)
    notes = []
    unlabeled = sum(not video.label for video in found)
    if found and unlabeled:
        notes.append(f"{source}: {unlabeled} of {len(found)} videos have neither a folder nor a .cls file as label")
    if others:
        notes.append(f"{source}: ignored {others} members without a video extension")
    if links:
        notes.append(f"{source}: ignored {links} links, devices, sparse files and names outside the archive's folder")
    return assemble(source, found, root=root, notes=notes)


def _read_archives(
    archives: Sequence[Path | RemoteFile], limits: SourceLimits, progress: Callable[[int, int], None]
) -> list[TarIndex]:
    """Read all archives, several at once, because remote ones take one request per member."""
    stopped = threading.Event()

    def keep(name: str) -> bool:
        if stopped.is_set():
            raise CancelledError
        return _is_class(name)

    def read(archive: Path | RemoteFile) -> TarIndex:
        try:
            index = read_archive(archive, limits, keep)
        except VideoError as error:
            raise ManifestError(f"{archive}: {error.reason}") from None
        if index.problem:
            raise ManifestError(f"{archive}: {index.problem}; copy or download it again")
        return index

    indexes: list[TarIndex] = []
    with ThreadPoolExecutor(min(len(archives), _ARCHIVES_AT_ONCE)) as pool:
        try:
            # A single one is read in this thread, which Ctrl-C interrupts at once.
            for index in (pool.map if len(archives) > 1 else map)(read, archives):
                indexes.append(index)
                progress(len(indexes), len(archives))
        finally:
            stopped.set()  # after an error or Ctrl-C
    return indexes


def _label(video: str, class_text: bytes) -> str:
    folders = [part for part in PurePosixPath(video).parts[:-1] if part != "/"]
    return usable_name(folders[0] if folders else class_text.decode("utf-8", "replace").strip())


def _is_class(name: str) -> bool:
    return name.lower().endswith(".cls")


def _sample(name: str) -> str:
    """Return the key of a sample: the name up to the first dot of its last part."""
    path = PurePosixPath(name)
    return str(path.parent / path.name.partition(".")[0])


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)
