"""The API's socket and who is taken to be at its other end."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import stat
from pathlib import Path

import pytest

from jobs.api.identity import Identities
from jobs.sockets import MAX_PATH_BYTES, SocketError, listen_unix, members_of

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another group")
GROUP = grp.getgrgid(os.getgid()).gr_name


def test_the_socket_has_its_mode_and_group_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with listen_unix(tmp_path / "s", 0o660, GROUP):
            found = (tmp_path / "s").stat()
            assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, os.getgid())
            assert [path.name for path in tmp_path.iterdir()] == ["s"]
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)


@needs_root
def test_the_socket_is_given_to_another_group(tmp_path: Path) -> None:
    other = next(group for group in grp.getgrall() if group.gr_gid != os.getgid())
    with listen_unix(tmp_path / "s", 0o660, other.gr_name):
        assert (tmp_path / "s").stat().st_gid == other.gr_gid


def test_a_socket_that_nobody_serves_is_replaced(tmp_path: Path) -> None:
    listen_unix(tmp_path / "s", 0o600, None).close()
    with listen_unix(tmp_path / "s", 0o600, None), socket.socket(socket.AF_UNIX) as made:
        made.connect(str(tmp_path / "s"))


def test_a_socket_that_is_served_is_left_alone(tmp_path: Path) -> None:
    with listen_unix(tmp_path / "s", 0o600, None):
        inode = (tmp_path / "s").stat().st_ino
        with pytest.raises(SocketError, match="another process serves it"):
            listen_unix(tmp_path / "s", 0o600, None)
        assert (tmp_path / "s").stat().st_ino == inode


def test_what_is_not_a_socket_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "s")
    for name in ("s", "link"):
        with pytest.raises(SocketError, match="not a socket"):
            listen_unix(tmp_path / name, 0o600, None)
    assert (tmp_path / "s").read_text() == "mine"


def test_what_cannot_be_is_told_with_its_cause(tmp_path: Path) -> None:
    with pytest.raises(SocketError, match="longer than"):
        listen_unix(tmp_path / ("x" * MAX_PATH_BYTES), 0o600, None)
    with pytest.raises(SocketError, match="no group 'nosuchgroup'"):
        listen_unix(tmp_path / "s", 0o600, "nosuchgroup")
    with pytest.raises(SocketError, match="No such file"):
        listen_unix(tmp_path / "absent" / "s", 0o600, None)
    assert list(tmp_path.iterdir()) == []


def test_root_and_the_nodes_own_user_are_admins_and_strangers_are_not() -> None:
    identities = Identities(None)
    assert identities.caller(0, 0).admin
    assert identities.caller(os.geteuid(), 99_999).admin
    assert not identities.caller(54_321, 0).admin, "root's group alone does not make an admin"


def test_members_of_the_admin_group_are_admins() -> None:
    """By their present group, or as the group database has it."""
    group = next(found for found in grp.getgrall() if found.gr_gid != 0)
    identities = Identities(group.gr_name)
    assert identities.caller(54_321, group.gr_gid).admin
    assert not identities.caller(54_322, group.gr_gid + 50_000).admin
    members = [user for user in pwd.getpwall() if user.pw_uid != 0 and user.pw_gid == group.gr_gid]
    assert all(identities.caller(user.pw_uid, user.pw_gid + 50_000).admin for user in members[:1])
    assert not Identities("nosuchgroup").caller(54_321, group.gr_gid).admin


def test_members_of_a_group_are_those_whose_own_it_is_and_those_who_are_listed() -> None:
    own = grp.getgrgid(os.getgid()).gr_name
    assert os.getuid() in members_of(own)
    listed = {name: group.gr_name for group in grp.getgrall() for name in group.gr_mem}
    for user, group in listed.items():
        if user in {entry.pw_name for entry in pwd.getpwall()}:
            assert pwd.getpwnam(user).pw_uid in members_of(group)
    assert members_of("no-such-group") == members_of(None) == set()
