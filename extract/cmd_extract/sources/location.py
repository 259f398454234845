"""Locations of videos, as written in a manifest.

``data_manifests/README.md`` documents the syntax for users.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

SCHEMES = ("http", "https", "s3", "gs")
"""URL schemes of remote files."""

_URL = re.compile(rf"(?:{'|'.join(SCHEMES)})://")
_TAR = r".*?\.(?:tar(?:\.[a-z0-9]{1,4})?|tgz|tbz2?|txz)"
_TAR_NAME = re.compile(_TAR, re.DOTALL | re.IGNORECASE)
_MEMBER = re.compile(rf"(?P<archive>{_TAR})::(?P<member>.+)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class RemoteFile:
    """A file that is read over the network.

    Attributes:
        url: address with one of ``SCHEMES``.
    """

    url: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class TarMember:
    """A file within a tar file.

    Attributes:
        archive: the tar file.
        member: name within the archive, without a leading ``./``.
    """

    archive: Path | RemoteFile
    member: str

    def __str__(self) -> str:
        return f"{self.archive}::{self.member}"


Source = Path | RemoteFile | TarMember
Root = Path | RemoteFile
"""Folder, or URL prefix, to which paths in a manifest are relative."""


def is_url(text: str) -> bool:
    """Return whether a text is a URL with one of ``SCHEMES``."""
    return _URL.match(text) is not None


def is_tar_name(name: str) -> bool:
    """Return whether a file name is that of a tar file, perhaps a compressed one."""
    return _TAR_NAME.fullmatch(name) is not None


def parse_root(text: str) -> Root:
    """Return the root that a text names."""
    return RemoteFile(text) if is_url(text) else Path(text)


def root_text(root: Root) -> str:
    """Return the absolute form of a root, from which ``parse_root`` restores it."""
    return root.url if isinstance(root, RemoteFile) else str(root.absolute())


def locate(path: str, root: Root) -> Source:
    """Return the location of a video.

    Args:
        path: as in a manifest: ``video.mp4``, ``videos.tar::video.mp4`` or ``s3://bucket/video.mp4``.
        root: base of relative paths.
    """
    match = _MEMBER.fullmatch(path)
    if match is not None:
        return TarMember(_locate_file(match["archive"], root), member_name(match["member"]))
    return _locate_file(path, root)


def _locate_file(path: str, root: Root) -> Path | RemoteFile:
    if is_url(path):
        return RemoteFile(path)
    if isinstance(root, Path) or posixpath.isabs(path):
        return Path(root, path) if isinstance(root, Path) else Path(path)
    is_object = root.url.startswith(("s3://", "gs://"))  # keys are not percent-encoded
    return RemoteFile(f"{root.url.rstrip('/')}/{path if is_object else quote(path, errors='surrogateescape')}")


def relative_text(source: Source, base: Path) -> str:
    """Return a location as text for a manifest; local paths below ``base`` are relative to it."""
    if isinstance(source, TarMember):
        return f"{relative_text(source.archive, base)}::{source.member}"
    if isinstance(source, RemoteFile):
        return source.url
    return (source.relative_to(base) if source.is_relative_to(base) else source).as_posix()


def member_name(name: str) -> str:
    """Return a name in an archive without ``./``, which ``tar -cf videos.tar .`` puts in front of all names."""
    return posixpath.normpath(name) if ".." not in name.split("/") else name
