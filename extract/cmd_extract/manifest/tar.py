"""Manifests of videos in tar files, such as the shards of a WebDataset."""

from __future__ import annotations

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
from cmd_extract.sources.access import read_member, tar_index
from cmd_extract.sources.location import TarMember

TAR_GLOB = "*.tar"
_MAX_LABEL_BYTES = 1024


def from_tar(source: Path, *, root: Path) -> ManifestSource:
    """List the videos in a tar file, or in all tar files of a folder, in the order of the archives and their members.

    The label is the first folder in the archive. Without folders, it is the text of the file of the same sample (the
    same name up to the first dot) with the extension ``.cls``, if there is one, as in a WebDataset. Ids are names in
    the archive without extension, after the name of the archive if there are several.

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
    found: list[SourceVideo] = []
    others = links = 0
    for archive in (base / path.name for path in archives):
        videos, labels, ignored = _read_archive(archive)
        prefix = f"{archive.stem}/" if len(archives) > 1 else ""
        for name, video_id in zip(videos, ids_of_paths(videos), strict=True):
            found.append(
                SourceVideo(
                    place=f"{archive}, member {name!r}",
                    file=TarMember(archive, name),
                    video_id=usable_name(prefix) + video_id,
                    label=labels[name],
                )
            )
        others, links = others + ignored[0], links + ignored[1]
    notes = []
    unlabeled = sum(not video.label for video in found)
    if found and unlabeled:
        notes.append(f"{source}: {unlabeled} of {len(found)} videos have neither a folder nor a .cls file as label")
    if others:
        notes.append(f"{source}: ignored {others} members without a video extension")
    if links:
        notes.append(f"{source}: ignored {links} links, devices, sparse files and names outside the archive's folder")
    return assemble(source, found, root=root, notes=notes)


def _read_archive(archive: Path) -> tuple[list[str], dict[str, str], tuple[int, int]]:
    """Return the names of the videos, their labels, and how many other files and links were ignored."""
    try:
        index = tar_index(archive)
        if index.problem:
            raise VideoError("open", f"{index.problem}; copy or download it again")
        names = [name for name in index.members if not _is_hidden(name)]
        videos = [name for name in names if is_video_name(name)]
        classes = {_sample(name): name for name in names if name.lower().endswith(".cls")}
        labels = {name: _label(archive, name, classes.get(_sample(name))) for name in videos}
    except VideoError as error:
        raise ManifestError(f"{archive}: {error.reason}") from None
    others = len(index.members) - len(videos) - len(classes)
    return videos, labels, (others, len(index.others))


def _label(archive: Path, video: str, class_file: str | None) -> str:
    folders = [part for part in PurePosixPath(video).parts[:-1] if part != "/"]
    if folders:
        return usable_name(folders[0])
    if class_file is None:
        return ""
    return usable_name(read_member(TarMember(archive, class_file), _MAX_LABEL_BYTES).decode("utf-8", "replace").strip())


def _sample(name: str) -> str:
    """Return the key of a sample: the name up to the first dot of its last part."""
    path = PurePosixPath(name)
    return str(path.parent / path.name.partition(".")[0])


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)
