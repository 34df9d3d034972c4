"""Whether a directory is on a network file system, where SQLite's write-ahead log must not be used.

The log's index lives in shared memory, which two machines do not share (https://sqlite.org/wal.html).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

# Shares between a machine and its virtual guests (9p, virtiofs, vboxsf) do not share memory either. What an
# automounter will put in its place is not known before; plain "fuse" may be anything.
_NETWORK = frozenset(
    (
        "9p",
        "afs",
        "autofs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "davfs",
        "fuse",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "panfs",
        "prl_fs",
        "pvfs2",
        "smb3",
        "smbfs",
        "vboxsf",
        "virtiofs",
        "wekafs",
    )
)
_LOCAL_FUSE = frozenset(("ext2", "ntfs", "ntfs-3g", "exfat", "overlayfs", "fuse-overlayfs"))


class _Mount(NamedTuple):
    id: str
    parent: str
    point: Path
    kind: str


def network_type(path: Path, mounts: str | None = None) -> str | None:
    """The type of the network file system that `path` is on, or None for a local one.

    Args:
        path: A file or directory; it need not exist yet.
        mounts: What Linux's `/proc/self/mountinfo` says; read when None. Systems without it count as local.
    """
    place = path.resolve()  # before the mounts are read: it may mount something
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
    kind = _kind(place, [mount for line in mounts.splitlines() if (mount := _mount(line))])
    if kind.startswith("fuse."):
        return None if kind.removeprefix("fuse.") in _LOCAL_FUSE else kind
    return kind if kind in _NETWORK else None


def _kind(place: Path, mounts: list[_Mount]) -> str:
    """Type of what is mounted at `place`, "" when nothing is."""
    above = [mount for mount in mounts if place.is_relative_to(mount.point)]
    ids = {mount.id for mount in above}
    # As the kernel walks down a path: from each mount to the first one on it that is met, which hides
    # what the mount itself has further down.
    here = [mount for mount in above if mount.parent not in ids or mount.parent == mount.id]
    kind = ""
    while here:
        met = min(here, key=lambda mount: len(mount.point.parts))
        kind = met.kind
        above.remove(met)
        here = [mount for mount in above if mount.parent == met.id]
    return kind


def _mount(line: str) -> _Mount | None:
    """A line of mountinfo: id, parent, device, root, mount point, options, ... - type, source, options."""
    head, _, tail = line.partition(" - ")
    columns = head.split(" ")
    if len(columns) < 5 or not tail:
        return None
    return _Mount(columns[0], columns[1], Path(_unescaped(columns[4])), tail.split(" ")[0])


def _unescaped(point: str) -> str:
    """The kernel writes blanks and backslashes as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), point)
