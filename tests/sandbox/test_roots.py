"""Jobs that have an image for their root: what they see of it, what they can do to it, and that others are as ever."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs import _native
from jobs.protocol.model import Reason
from jobs.workers.sandbox import Configure, Launcher
from tests.support.users import let_others_in

from .conftest import USER_ID, LauncherError, Sandbox, limits, start_launcher
from .images import make_tree

OWNER = Configure(slots=1).uid_base + Configure(slots=1).uid_count - 1


def make_images(tmp_path: Path, owner: int) -> Path:
    """`named`: a directory of the operator's; `cache/one`: an unpacked one, which all may write."""
    let_others_in(tmp_path)
    make_tree(tmp_path / "named")
    (tmp_path / "cache").mkdir(mode=0o711)
    make_tree(tmp_path / "cache" / "one" / "tree")
    make_tree(tmp_path / "cache" / "other" / "tree")
    for path in (tmp_path / "cache").rglob("*"):
        if not path.is_symlink():
            path.chmod(0o777)
        if os.geteuid() == 0:
            os.chown(path, owner, owner, follow_symlinks=False)
    return tmp_path


@pytest.fixture
def images(identity: str, tmp_path: Path) -> Path:
    return make_images(tmp_path, OWNER if identity == "root" else USER_ID)


@pytest.fixture
def rooted(fresh: Callable[..., Sandbox], images: Path) -> Sandbox:
    return fresh(roots={"mine": str(images / "named")}, root_cache=str(images / "cache"))


def writable(sandbox: Sandbox) -> bool:
    return not sandbox.launcher.ready.features["overlay"].startswith("missing")


def test_a_job_sees_the_image_and_nothing_of_the_host(rooted: Sandbox, images: Path) -> None:
    for root in ("named/mine", "cache/one"):
        script = "cat /etc/image; ls -A /; ls /usr 2>&1; cat etc/link"
        result = rooted.run(script=script, root=root, cwd="/", files={"given": b"x"})
        assert result.outcome.reason is None, result
        names = result.stdout.splitlines()
        assert names[0] == names[-1] == "of the image"
        assert {"bin", "dev", "etc", "proc", "tmp", "work"} <= set(names)
        assert "root" not in names
        assert "home" not in names
        assert result.outcome.sandbox == "strict"
        assert result.outcome.root == ("writable" if writable(rooted) else "read_only")
    assert not (images / "named" / "work" / "given").exists()


def test_what_every_job_has_it_has_too(rooted: Sandbox) -> None:
    script = """
    id -u; cat given; echo made > out; cat out; echo t > /tmp/t; echo s > /dev/shm/s; head -c 4 /dev/zero >/dev/null
    cat "$JOBS_SECRETS/token"; ls /proc/self/fd; cat /proc/1/comm || echo hidden
    ls -A /.roots /.inputs 2>/dev/null
    """
    result = rooted.run(
        script=script, root="cache/one", files={"given": b"given\n"}, secrets={"token": b"hunter2-hunter2"}
    )
    assert result.stdout == "1000\ngiven\nmade\n***0\n1\n2\n3\n4\nhidden\n", result.stderr


def test_what_it_writes_is_its_own_and_counted(rooted: Sandbox, images: Path) -> None:
    if not writable(rooted):
        pytest.skip("no overlay in a user namespace")
    script = """
    echo changed > /etc/image && cat /etc/image && rm /etc/link && touch /new /bin/new && mkdir /made && rm /bin/env
    head -c 3000000 /dev/zero > /big || echo full
    """
    result = rooted.run(script=script, root="cache/one", limits=limits(tmp_bytes=2 << 20))
    assert result.stdout == "changed\nfull\n", result.stderr
    again = rooted.run(script="cat /etc/image /etc/link; ls /new /bin/env /made", root="cache/one")
    assert again.stdout == "of the image\nof the image\n/bin/env\n"
    assert (images / "cache/one/tree/etc/image").read_text() == "of the image\n"


def test_a_worker_that_is_not_root_and_gives_uids_has_layers_as_well(tmp_path: Path) -> None:
    images = make_images(tmp_path, USER_ID)
    sandbox = Sandbox(start_launcher("capable", Configure(slots=2, root_cache=str(images / "cache"))))
    try:
        script = "echo changed > /etc/image && cat /etc/image && rm /bin/env && mkdir /made && id -u"
        result = sandbox.run(script=script, root="cache/one")
        assert sandbox.launcher.ready.features["uids"].startswith("each job has its own")
        if writable(sandbox):
            assert (result.outcome.root, result.stdout) == ("writable", "changed\n1000\n"), result.stderr
        else:
            assert result.outcome.root == "read_only"
    finally:
        sandbox.launcher.close()


@pytest.fixture
def plain(identity: str, images: Path, tmp_path: Path) -> Iterator[Sandbox]:
    """A launcher on a kernel that has no overlay: it asks for a file system that there is not."""
    if identity == "user":
        pytest.skip("once is enough")
    program = tmp_path / "launcher"
    program.write_bytes(_native.launcher_program().replace(b"\0overlay\0", b"\0overlax\0"))
    program.chmod(0o755)
    wrapper = ["/bin/sh", "-c", 'shift; exec "$PROGRAM" "$@"'.replace("$PROGRAM", str(program)), "sh"]
    config = Configure(slots=2, roots={"mine": str(images / "named")}, root_cache=str(images / "cache"))
    launcher = Launcher.start(config, wrapper=wrapper)
    yield Sandbox(launcher)
    launcher.close()


def test_without_overlay_an_image_is_read_only_and_that_is_said(plain: Sandbox, images: Path) -> None:
    assert plain.launcher.ready.features["overlay"].startswith("missing")
    for root in ("named/mine", "cache/one"):
        script = "cat /etc/image given; echo x > /etc/image; rm -f /bin/cat; echo out > out; cat out; ls /proc/self/fd"
        result = plain.run(script=script, root=root, files={"given": b"given\n"}, secrets={"token": b"hunter2-hunter2"})
        assert result.outcome.root == "read_only"
        assert result.stdout == "of the image\ngiven\nout\n0\n1\n2\n3\n4\n", result.stderr
        assert "ead-only" in result.stderr
    # Nothing can be made in such an image: what it lacks is named.
    (images / "named/work").rmdir()
    outcome = plain.run("true", root="named/mine").outcome
    assert outcome.reason is Reason.SANDBOX_UNAVAILABLE
    assert outcome.message == "make room for the job's own in its root image: no such file or directory"


def test_an_operator_s_directory_is_written_only_where_all_may(rooted: Sandbox, images: Path) -> None:
    result = rooted.run(script="echo x > /etc/image; rm -f /bin/cat; cat /etc/image", root="named/mine")
    assert result.stdout == "of the image\n"
    assert (images / "named/etc/image").read_text() == "of the image\n"


def test_the_layer_and_other_images_are_out_of_reach(rooted: Sandbox) -> None:
    script = "ls -A /.job/root /.roots/cache; cat /.job/root/upper/x /.roots/cache/other/tree/etc/image; echo end"
    result = rooted.run(script=script, root="cache/one")
    assert result.stdout == "end\n"
    plain = rooted.run(script="ls -A /.roots; cat /.roots/cache/one/tree/etc/image; echo end")
    assert plain.stdout == "end\n"


def test_rights_are_as_without_an_image(rooted: Sandbox) -> None:
    script = (
        "cat /proc/self/status; chmod u+s /bin/id; mkdir /sys/x; cat /proc/kcore; echo x > /proc/sys/kernel/hostname"
    )
    result = rooted.run(script=script, root="cache/one")
    assert "CapEff:\t0000000000000000" in result.stdout
    assert "NoNewPrivs:\t1" in result.stdout
    assert "Seccomp:\t2" in result.stdout


def test_what_is_hidden_without_an_image_is_hidden_with_one(rooted: Sandbox) -> None:
    script = """
    for f in /proc/* /dev/*; do case $f in /proc/[0-9]*) ;; *) stat -c '%n %F %a %s' $f;; esac; done
    for f in kcore keys timer_list sched_debug; do head -c 1 /proc/$f; done
    echo x > /proc/sys/kernel/domainname
    """
    plain = rooted.run(script=script)
    assert plain.stdout.count("\n") > 20
    assert "domainname" in plain.stderr
    for root in ("named/mine", "cache/one"):
        result = rooted.run(script=script, root=root)
        assert (result.stdout, result.stderr) == (plain.stdout, plain.stderr)


@pytest.mark.parametrize(
    "root", ["named/other", "cache/missing", "cache/..", "cache/one/../other", "mine", "named/../named"]
)
def test_what_is_no_image_is_refused(rooted: Sandbox, root: str) -> None:
    outcome = rooted.run("true", root=root).outcome
    assert outcome.reason in (Reason.SANDBOX_UNAVAILABLE, Reason.INVALID_PAYLOAD), outcome


def test_a_directory_that_is_not_there_is_named(fresh: Callable[..., Sandbox]) -> None:
    with pytest.raises(LauncherError, match="show /nowhere/at/all in the jobs' view: No such file or directory"):
        fresh(roots={"mine": "/nowhere/at/all"})


def test_places_that_are_links_lead_nowhere_else(rooted: Sandbox, images: Path) -> None:
    """Given an image whose /tmp, /work and /proc are links to other places."""
    tree = images / "cache" / "one" / "tree"
    for name, target in (("tmp", "/etc"), ("work", "/.roots/cache/other/tree"), ("proc", "../../../../etc")):
        (tree / name).rmdir()
        (tree / name).symlink_to(target)
    result = rooted.run(script="echo x > /tmp/x; cat /etc/x; ls /work; cat /proc/self/comm", root="cache/one")
    if writable(rooted):
        assert result.stdout == "cat\n", result
    else:
        assert result.outcome.reason is Reason.SANDBOX_UNAVAILABLE
    assert not (images / "cache/other/tree/x").exists()


def test_a_program_that_the_image_has_not_is_named(rooted: Sandbox) -> None:
    outcome = rooted.run("/usr/bin/python3", root="named/mine").outcome
    assert outcome.reason is Reason.SPAWN_FAILED
    expected = "no such file or directory: /usr/bin/python3, or what it needs to be run, in its root image"
    assert outcome.message == expected


def test_jobs_without_an_image_are_as_ever_beside_those_with_one(rooted: Sandbox) -> None:
    for _ in range(3):
        assert rooted.run("cat", "/etc/image", root="cache/one").stdout == "of the image\n"
        assert rooted.run("test", "-d", "/usr/bin").outcome.reason is None
        assert rooted.run("true").outcome.root is None
