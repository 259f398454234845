"""Manifests of videos in a folder of an object store, and in remote tar files."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from cmd_extract.errors import ManifestError, VideoError
from cmd_extract.manifest.sources import ManifestSource, from_names, is_video_name
from cmd_extract.manifest.tar import TAR_GLOB, from_archives
from cmd_extract.sources.limits import SourceLimits
from cmd_extract.sources.location import RemoteFile, is_tar_name
from cmd_extract.sources.remote import RemoteObject, require_remote

_NO_ROOT = Path()  # URLs are absolute


def from_url(
    url: str,
    form: str,
    *,
    limits: SourceLimits | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[str, ManifestSource]:
    """List the videos in a folder of an object store, in a tar file, or in the tar files directly in a folder.

    Labels, splits and ids are those of the same files in a local folder. Paths are URLs.

    Args:
        url: a folder or bucket (``s3://``, ``gs://``), or a tar file (also ``https://``).
        form: ``folder``, ``tar``, or ``auto``: ``tar`` for a tar file or a folder without videos, else ``folder``.
        limits: time limit and retries of requests.
        progress: called with the number of tar files read and their total.

    Returns:
        The format, and the rows.

    Raises:
        ManifestError: the URL cannot be listed or read, or there are no videos.
        RunError: a package is missing.
    """
    require_remote([url])
    source, limits = RemoteFile(url), limits or SourceLimits()
    if is_tar_name(url) and form != "folder":
        return "tar", from_archives(source, [source], root=_NO_ROOT, limits=limits, progress=progress)
    if url.startswith(("http://", "https://")):
        raise ManifestError(
            f"{url}: neither a tar file (.tar) nor a folder in an object store (s3://, gs://); web servers cannot list "
            "their files: enter the URLs of the videos in the column 'path' of a local CSV file, and give that file"
        )
    names = _list(url, limits)
    visible = [name for name in names if _hidden(name) is None]
    if form == "auto":
        form = "folder" if any(map(is_video_name, visible)) else "tar"
    if form == "folder":
        hidden = len({_hidden(name) for name in names} - {None})
        return form, from_names(source, visible, hidden, file_of=lambda name: _child(url, name), root=_NO_ROOT)
    archives = [_child(url, name) for name in visible if "/" not in name and fnmatchcase(name, TAR_GLOB)]
    if not archives:
        raise ManifestError(
            f"{url}: contains no videos (folder) and, directly in it, no tar files (tar: {TAR_GLOB}); check the URL"
        )
    return form, from_archives(source, archives, root=_NO_ROOT, limits=limits, progress=progress)


def _list(url: str, limits: SourceLimits) -> list[str]:
    try:
        names = RemoteObject(url, limits).names_below()
    except VideoError as error:
        reason = "no such bucket; check the URL" if error.is_missing else error.reason
        raise ManifestError(f"{url}: {reason}") from None
    if not names:
        raise ManifestError(
            f"{url}: no such folder, or it is empty; check the URL. Single videos and lists of videos cannot be given "
            "as a URL: enter the URLs of the videos in the column 'path' of a local CSV file, and give that file"
        )
    return names


def _child(folder: str, name: str) -> RemoteFile:
    return RemoteFile(f"{folder.rstrip('/')}/{name}")


def _hidden(name: str) -> str | None:
    """Return the outermost hidden file or folder of a path; None if nothing in it is hidden."""
    parts = PurePosixPath(name).parts
    return next(("/".join(parts[: depth + 1]) for depth, part in enumerate(parts) if part.startswith(".")), None)
