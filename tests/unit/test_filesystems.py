from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from maxwell.database.filesystems import network_type

ROOT = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw"
NFS_HOME = "90 22 0:60 / /home/ann rw,relatime shared:7 master:2 - nfs4 box:/export/ann rw,vers=4.2"


def kind(path: str, *lines: str) -> str | None:
    return network_type(Path(path), "".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/ann", "nfs4"),
        ("/home/ann/.maxwell", "nfs4"),
        ("/home/ann/.maxwell/ledger.db", "nfs4"),
        ("/home/annabel/.maxwell", None),
        ("/home", None),
        ("/", None),
    ],
)
def test_a_network_home_under_a_local_root(path: str, expected: str | None) -> None:
    assert kind(path, ROOT, NFS_HOME) == expected


def test_a_local_disk_inside_a_network_home_is_local() -> None:
    scratch = "95 90 8:1 / /home/ann/scratch rw - xfs /dev/sda1 rw"
    assert kind("/home/ann/scratch/.maxwell", ROOT, NFS_HOME, scratch) is None
    assert kind("/home/ann/.maxwell", ROOT, NFS_HOME, scratch) == "nfs4"


def test_the_order_of_the_lines_does_not_matter() -> None:
    scratch = "95 90 8:1 / /home/ann/scratch rw - xfs /dev/sda1 rw"
    assert kind("/home/ann/scratch/.maxwell", scratch, NFS_HOME, ROOT) is None


def test_a_later_mount_on_one_point_hides_the_earlier() -> None:
    over = "96 90 8:1 / /home/ann rw - ext4 /dev/sda1 rw"
    assert kind("/home/ann/.maxwell", ROOT, NFS_HOME, over) is None
    under = "80 22 8:1 / /home/ann rw - ext4 /dev/sda1 rw"
    nfs = NFS_HOME.replace("90 22", "90 80")
    assert kind("/home/ann/.maxwell", ROOT, under, nfs) == "nfs4"


def test_a_later_mount_further_up_hides_what_was_below() -> None:
    over = "96 22 8:1 / /home rw - ext4 /dev/sda1 rw"
    assert kind("/home/ann/.maxwell", ROOT, NFS_HOME, over) is None
    nfs = "97 22 0:61 / /home rw - nfs box:/home rw"
    local = "90 22 8:1 / /home/ann rw - ext4 /dev/sda1 rw"
    assert kind("/home/ann/.maxwell", ROOT, local, nfs) == "nfs"


def test_mounts_that_were_stacked_on_the_root() -> None:
    rootfs = "1 1 0:2 / / rw - rootfs rootfs rw"
    assert kind("/home/ann", rootfs, ROOT.replace("22 1", "22 1")) is None
    assert kind("/home/ann", rootfs, "22 1 0:30 / / rw - nfs box:/root rw") == "nfs"


def test_mounts_of_a_changed_root_have_no_parent_in_the_list() -> None:
    assert kind("/home/ann/x", "90 4711 0:60 / /home/ann rw - nfs4 box:/ann rw") == "nfs4"
    assert kind("/srv", "90 4711 0:60 / /home/ann rw - nfs4 box:/ann rw") is None


def test_escaped_blanks_and_backslashes() -> None:
    share = r"90 22 0:60 / /share/my\040books\134old rw - cifs //box/books rw"
    assert kind("/share/my books\\old/.maxwell", ROOT, share) == "cifs"
    assert kind("/share/my", ROOT, share) is None


def test_a_mount_point_with_other_letters() -> None:
    assert kind("/share/Bücher/x", ROOT, "90 22 0:60 / /share/Bücher rw - nfs4 box:/b rw") == "nfs4"


def test_what_an_automounter_will_mount_is_not_known() -> None:
    auto = "40 22 0:40 / /home rw - autofs auto.home rw,indirect"
    assert kind("/home/ann/.maxwell", ROOT, auto) == "autofs"
    mounted = "90 40 0:60 / /home/ann rw - nfs4 box:/ann rw"
    assert kind("/home/ann/.maxwell", ROOT, auto, mounted) == "nfs4"
    local = "90 40 8:1 / /home/ann rw - ext4 /dev/sda1 rw"
    assert kind("/home/ann/.maxwell", ROOT, auto, local) is None
    direct = "40 22 0:40 / /home/ann rw - autofs auto.direct rw,direct"
    on_it = "90 40 0:60 / /home/ann rw - nfs4 box:/ann rw"
    assert kind("/home/ann/.maxwell", ROOT, direct, on_it) == "nfs4"


@pytest.mark.parametrize(
    ("type_", "expected"),
    [
        ("overlay", None),
        ("btrfs", None),
        ("zfs", None),
        ("tmpfs", None),
        ("fuseblk", None),
        ("fuse.ntfs-3g", None),
        ("fuse.fuse-overlayfs", None),
        ("fuse.sshfs", "fuse.sshfs"),
        ("fuse.s3fs", "fuse.s3fs"),
        ("fuse.rclone", "fuse.rclone"),
        ("fuse", "fuse"),
        ("9p", "9p"),
        ("virtiofs", "virtiofs"),
        ("lustre", "lustre"),
        ("smb3", "smb3"),
        ("nfs", "nfs"),
        ("nfsd", None),
    ],
)
def test_which_types_are_of_the_network(type_: str, expected: str | None) -> None:
    assert kind("/home/ann", f"22 1 0:30 / / rw,relatime - {type_} whatever rw") == expected


@pytest.mark.parametrize("text", ["", "\n", "nonsense\n", "1 2 3\n", "22 1 254:0 / / rw,relatime\n", " - \n"])
def test_lines_that_say_nothing_are_passed_over(text: str) -> None:
    assert network_type(Path("/home/ann"), text) is None
    assert network_type(Path("/home/ann"), text + ROOT + "\n" + NFS_HOME + "\n" + text) == "nfs4"


def test_optional_fields_may_be_missing_or_many() -> None:
    assert kind("/x", "22 1 0:30 / / rw - nfs box:/ rw") == "nfs"
    assert (
        kind("/x", "22 1 0:30 / / rw shared:1 master:2 propagate_from:3 unbindable - nfs box:/ rw") == "nfs"
    )


def test_a_link_leads_to_where_it_points(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    nfs = f"90 22 0:60 / {target} rw - nfs4 box:/t rw"
    assert kind(f"{tmp_path}/link/.maxwell", ROOT, nfs) == "nfs4"


def test_where_this_machine_keeps_temporary_files_is_looked_up(tmp_path: Path) -> None:
    found = network_type(tmp_path)
    assert found is None or isinstance(found, str)


WITHOUT_PROC = """
import sys
from pathlib import Path
from maxwell.database.filesystems import network_type
from maxwell.database.owners import is_alive, this_process

assert not Path("/proc/self/mountinfo").exists()
assert network_type(Path("/home")) is None
owner = this_process()
assert owner.started == 0, owner
assert is_alive(owner)
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may hide /proc, on Linux")
def test_a_system_without_proc_counts_as_local() -> None:
    command = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody hide /proc")
    done = subprocess.run(
        [*command, sys.executable, "-c", WITHOUT_PROC], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
