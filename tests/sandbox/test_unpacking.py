"""Images are unpacked by a process that has nothing but the directory to fill; hostile ones fill nothing else."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

from jobs.workers import roots
from jobs.workers.removal import delete
from jobs.workers.roots import DELETING, Image, RootCache, RootError
from tests.support.users import let_others_in

from .images import Change, add, layer, layout, make_tree, of_tree, squashfs

OWNER = 0x7000_1FFF if os.geteuid() == 0 else None
requires_mksquashfs = pytest.mark.skipif(shutil.which("mksquashfs") is None, reason="no mksquashfs")


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """What no image may touch, open to everybody as far as modes go."""
    let_others_in(tmp_path.parent)
    tmp_path.chmod(0o777)
    (tmp_path / "outside").mkdir(mode=0o777)
    (tmp_path / "outside").chmod(0o777)
    (tmp_path / "outside" / "kept").write_text("kept")
    (tmp_path / "outside" / "kept").chmod(0o666)
    yield tmp_path / "outside"
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["kept"]
    assert (tmp_path / "outside" / "kept").read_text() == "kept"


@pytest.fixture
def cache(tmp_path: Path, outside: Path) -> Iterator[RootCache]:
    made = RootCache(tmp_path / "roots", "jobs:0123456789", 64 << 20, OWNER)
    yield made
    for thread in threading.enumerate():
        if thread.name == DELETING:
            thread.join()
    delete(tmp_path / "roots")


def unpack(cache: RootCache, archive: Path, name: str = "0" * 64) -> Image:
    asyncio.run(cache._unpack(nullcontext(archive), name, "the image"))
    return cache._entries[name].image


def tree_of(cache: RootCache, name: str = "0" * 64) -> Path:
    return cache.directory / name / "tree"


def refusal(cache: RootCache, archive: Path) -> str:
    with pytest.raises(RootError) as refused:
        unpack(cache, archive)
    assert list(cache.directory.iterdir()) == [], "something of it is left"
    return str(refused.value)


@pytest.fixture
def image(tmp_path: Path) -> Callable[..., Path]:
    """Make a layout of layers, each by what adds to it."""
    return lambda *changes, **options: layout(tmp_path / "image.tar", [layer(change) for change in changes], **options)


def content(root: Path) -> dict[str, str]:
    """Every file and link of a tree."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(root))] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[str(path.relative_to(root))] = path.read_bytes()[:40].decode("latin-1")
    return found


TRIES = """
import ctypes, mmap, os, socket, sys
sys.path.insert(0, sys.argv[1])
from jobs import _native
parent, outside = os.getppid(), sys.argv[2]
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
_native.confine(identity=eval(sys.argv[3]), memory_bytes=1 << 30, file_bytes=1 << 20, cpu_s=60)
TRIES = {
    "a file of the host": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "a file beside its directory": lambda: os.open("../outside/kept", os.O_RDONLY),
    "a path of the host": lambda: os.open(outside, os.O_RDONLY | os.O_DIRECTORY),
    "processes of the host": lambda: os.open("/proc/self/status", os.O_RDONLY),
    "a process": os.fork,
    "a thread or process by clone3": lambda: call(435, 0, 0),
    "a program": lambda: os.execv("/made", ["made"]),
    "a socket": lambda: socket.socket(socket.AF_UNIX),
    "a socket of the network": lambda: socket.socket(socket.AF_INET),
    "a signal to its parent": lambda: os.kill(parent, 0),
    "a signal by tgkill": lambda: call(234, parent, parent, 0),
    "a mount": lambda: call(165, b"x", b"/", b"tmpfs", 0, 0),
    "a namespace": lambda: call(272, 0x10000000),
    "another root": lambda: os.chroot("."),
    "a device": lambda: os.mknod("device", 0o20666, os.makedev(1, 3), dir_fd=root),
    "a fifo": lambda: os.mkfifo("fifo", dir_fd=root),
    "another owner": lambda: os.chown("made", 0, 0, dir_fd=root),
    "another uid": lambda: os.setuid(0),
    "an attribute": lambda: os.setxattr("/made", "security.capability", b"x"),
    "a terminal's input": lambda: call(16, 0, 0x5412, b"x"),
    "a file larger than it may have": lambda: os.ftruncate(os.open("/made", os.O_WRONLY), 2 << 20),
    "memory beyond its bound": lambda: mmap.mmap(-1, 2 << 30),
}
with open("/made", "w") as made:
    made.write("made")
root = os.open("/", os.O_RDONLY)
os.mkdir("directory", dir_fd=root)
os.symlink("/made", "directory/link", dir_fd=root)
os.link("made", "again", src_dir_fd=root, dst_dir_fd=root)
os.unlink("again", dir_fd=root)
for name, tried in TRIES.items():
    try:
        tried()
    except (OSError, ValueError):
        continue
    os.write(1, f"it got {name}\\n".encode())
os.write(1, open("/directory/link").read().encode())
os._exit(0)
"""


def test_what_unpacks_has_nothing_but_the_directory(outside: Path, tmp_path: Path) -> None:
    """Given a program that does whatever it can in the place of what reads an image."""
    (tmp_path / "tree").mkdir()
    if OWNER is not None:
        os.chown(tmp_path / "tree", OWNER, OWNER)
    package = Path(roots.__file__).parents[2]
    command = [sys.executable, "-c", TRIES, str(package), str(outside), repr(OWNER)]
    ended = subprocess.run(command, cwd=tmp_path / "tree", capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "made"), ended
    assert sorted(path.name for path in (tmp_path / "tree").iterdir()) == ["directory", "made"]


@requires_mksquashfs
@pytest.mark.parametrize("options", [(), ("-comp", "xz"), ("-noI", "-noD", "-noF"), ("-b", "4096", "-no-fragments")])
def test_a_squashfs_file_is_unpacked_as_it_was(cache: RootCache, tmp_path: Path, options: tuple[str, ...]) -> None:
    source = tmp_path / "source"
    make_tree(source)
    (source / "sparse").write_bytes(b"\0" * 700_000 + b"end")
    (source / "many").mkdir()
    for number in range(600):
        (source / "many" / f"file-{number:04}").write_text(f"{number}\n")
    os.link(source / "etc/image", source / "etc/again")
    (source / "random").write_bytes(os.urandom(300_000))
    (source / "setuid").write_text("x")
    (source / "setuid").chmod(0o6755)
    os.mkfifo(source / "fifo")
    image = unpack(cache, squashfs(source, tmp_path / "image.sqfs", "-p", "null c 666 0 0 1 3", *options))
    root = tree_of(cache)
    assert content(root) == content(source)
    assert image.skipped == 2
    assert not [path for path in root.rglob("*") if path.is_fifo() or path.is_char_device()]
    assert (root / "random").read_bytes() == (source / "random").read_bytes()
    assert (root / "sparse").read_bytes() == (source / "sparse").read_bytes()
    assert (root / "etc/image").stat().st_ino == (root / "etc/again").stat().st_ino
    assert os.access(root / "bin/sh", os.X_OK)
    assert image.bytes >= 1_000_000
    assert not [path for path in root.rglob("*") if path.lstat().st_mode & 0o7000]


@requires_mksquashfs
def test_a_squashfs_file_that_is_damaged_anywhere_is_refused_or_whole(cache: RootCache, tmp_path: Path) -> None:
    """Given every eighth byte of a small image changed in turn, in steps that a test has time for."""
    source = tmp_path / "source"
    (source / "a/b").mkdir(parents=True)
    (source / "a/b/file").write_text("content\n" * 50)
    good = squashfs(source, tmp_path / "image.sqfs").read_bytes()
    damaged = tmp_path / "damaged.sqfs"
    for place in range(0, len(good.rstrip(b"\0")), max(1, len(good.rstrip(b"\0")) // 24)):
        damaged.write_bytes(good[:place] + bytes([good[place] ^ 0x5A]) + good[place + 1 :])
        with suppress(RootError):
            unpack(cache, damaged, f"{place:064x}")
        left = [path for path in cache.directory.iterdir() if path.name.startswith(".")]
        assert left == []


@requires_mksquashfs
def test_compressions_that_are_not_read_are_named(cache: RootCache, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_text("x")
    assert "zstd; use gzip or xz" in refusal(cache, squashfs(tmp_path / "source", tmp_path / "i.sqfs", "-comp", "zstd"))


def test_a_layer_by_zstd_is_named(cache: RootCache, tmp_path: Path) -> None:
    packed = layout(tmp_path / "image.tar", [b"\x28\xb5\x2f\xfd" + bytes(1020)], compress=False)
    assert "a layer is compressed by zstd; use gzip, or none" in refusal(cache, packed)


@requires_mksquashfs
def test_what_is_cut_off_or_says_to_be_larger_is_refused(cache: RootCache, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source")
    whole = squashfs(source, tmp_path / "image.sqfs").read_bytes()
    for size in (4, 95, 96, 4096, len(whole) // 2, len(whole) - 4096 - len(whole) % 4096):
        (tmp_path / "cut.sqfs").write_bytes(whole[:size])
        assert "squashfs: " in refusal(cache, tmp_path / "cut.sqfs")
    packed = layout(tmp_path / "image.tar", [of_tree(source)]).read_bytes()
    for size in (512, 5_000, len(packed) // 2):
        (tmp_path / "cut.tar").write_bytes(packed[:size])
        assert "root image the image: " in refusal(cache, tmp_path / "cut.tar")


def long_name(file: tarfile.TarFile) -> None:
    """The header before a member, of which the whole is held in memory."""
    add(file, "before", b"a" * (8 << 20), kind=tarfile.XHDTYPE)
    add(file, "x")


def sparse(file: tarfile.TarFile) -> None:
    info = tarfile.TarInfo("sparse")
    info.size = 512
    info.pax_headers = {"GNU.sparse.map": "0,512", "GNU.sparse.size": str(1 << 50), "GNU.sparse.numblocks": "1"}
    file.addfile(info, io.BytesIO(bytes(512)))


@pytest.mark.parametrize("change", [long_name, sparse])
def test_members_of_which_little_is_stored_are_cut_at_the_bounds(
    tmp_path: Path, outside: Path, image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    monkeypatch.setattr(roots, "MAX_ENTRIES", 100)
    cache = RootCache(tmp_path / "roots", "jobs:0123456789", 1 << 20, OWNER)
    assert " bytes" in refusal(cache, image(change))


def test_memory_and_time_are_bounded(
    cache: RootCache, image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(roots, "MEMORY_BYTES", 320 << 20)
        unpack(cache, image(lambda file: add(file, "x", bytes(1 << 20))))
        delete(cache.directory / next(iter(cache._entries)))
        cache._entries.clear()
        larger = image(lambda file: add(file, "before", b"a" * (400 << 20), kind=tarfile.XHDTYPE))
        large = RootCache(cache.directory.parent.parent, "jobs:0123456789", 1 << 30, OWNER)
        assert "more memory" in refusal(large, larger)

    def many(file: tarfile.TarFile) -> None:
        for number in range(3_000):
            add(file, f"{number}")
            add(file, ".wh..wh..opq")

    monkeypatch.setattr(roots, "CPU_S", 1)
    assert "more memory or time" in refusal(cache, image(many))


@pytest.mark.parametrize("compress", [True, False])
def test_layers_change_what_is_below_them(cache: RootCache, image: Callable[..., Path], compress: bool) -> None:
    def first(file: tarfile.TarFile) -> None:
        add(file, "usr/lib/kept", b"kept")
        add(file, "lib", kind=tarfile.SYMTYPE, link="usr/lib")
        add(file, "gone", b"x")
        add(file, "goes/with/all", b"x")
        add(file, "opaque/lower", b"x")
        add(file, "opaque/deep/lower", b"x")
        add(file, "file-becomes-directory", b"x")
        add(file, "./directory-becomes-file/inside", b"x")
        add(file, "setuid", b"x", mode=0o6755)
        add(file, "null", kind=tarfile.CHRTYPE)

    def second(file: tarfile.TarFile) -> None:
        add(file, "lib/added", b"through a link of the image")
        add(file, ".wh.gone")
        add(file, "goes/.wh.with")
        add(file, "opaque/upper", b"stays")
        add(file, "opaque/.wh..wh..opq")
        add(file, "opaque/deep/upper", b"stays")
        add(file, "file-becomes-directory", kind=tarfile.DIRTYPE, mode=0o700)
        add(file, "directory-becomes-file", b"now")
        add(file, "usr/lib/again", kind=tarfile.LNKTYPE, link="usr/lib/kept")
        add(file, ".wh..wh.plnk")
        add(file, ".wh.never-was")

    config = {"Env": ["PATH=/image/bin", "A=b=c"], "WorkingDir": "/app", "Entrypoint": ["/ignored"]}
    unpacked = unpack(cache, image(first, second, config=config, compress=compress))
    assert content(tree_of(cache)) == {
        "directory-becomes-file": "now",
        "lib": "-> usr/lib",
        "opaque/deep/upper": "stays",
        "opaque/upper": "stays",
        "setuid": "x",
        "usr/lib/added": "through a link of the image",
        "usr/lib/again": "kept",
        "usr/lib/kept": "kept",
    }
    assert unpacked.variables == {"PATH": "/image/bin", "A": "b=c"}
    assert (unpacked.directory, unpacked.skipped) == ("/app", 1)
    assert (tree_of(cache) / "setuid").stat().st_mode & 0o7777 == 0o777


HOSTILE: dict[str, Change] = {
    "leads out": lambda file: add(file, "../outside/made", b"x"),
    "leads out of a directory": lambda file: add(file, "a/../../outside/made", b"x"),
    "no name": lambda file: add(file, "n" * 300, b"x"),
    "deep": lambda file: add(file, "d/" * 100 + "x", b"x"),
    "hard link out": lambda file: add(file, "made", kind=tarfile.LNKTYPE, link="../outside/kept"),
    "hard link to nothing": lambda file: add(file, "made", kind=tarfile.LNKTYPE, link="/etc/hostname"),
    "whiteout of the root": lambda file: add(file, ".wh."),
    "whiteout above": lambda file: add(file, "../outside/.wh.kept"),
    "the root as a file": lambda file: add(file, "./", b"x"),
    "endless link": lambda file: add(file, "l", kind=tarfile.SYMTYPE, link="x" * 5000),
    "a type that is none": lambda file: add(file, "x", kind=b"Z"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_honest_image_says_is_refused(cache: RootCache, image: Callable[..., Path], name: str) -> None:
    def hostile(file: tarfile.TarFile) -> None:
        add(file, "before", b"x")
        HOSTILE[name](file)

    assert "root image the image: " in refusal(cache, image(hostile))


def test_names_and_links_that_point_out_stay_inside(
    cache: RootCache, image: Callable[..., Path], tmp_path: Path
) -> None:
    """Given files that are written through links to where the image's own root is not."""
    (tmp_path / "outside").mkdir(exist_ok=True)

    def hostile(file: tarfile.TarFile) -> None:
        add(file, str(tmp_path / "outside" / "absolute"), b"x")
        add(file, "up", kind=tarfile.SYMTYPE, link="../../../../../.." + str(tmp_path))
        add(file, "up/outside/through-up", b"x")
        add(file, "proc", kind=tarfile.SYMTYPE, link="/etc")
        add(file, "l", kind=tarfile.SYMTYPE, link=str(tmp_path / "outside" / "kept"))
        add(file, "l", b"in place of the link")
        add(file, "again", kind=tarfile.LNKTYPE, link="up/outside/through-up")
        for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
            add(file, f"device-{kind.decode()}", kind=kind)

    def removing(file: tarfile.TarFile) -> None:
        add(file, "up/outside/.wh.kept")
        add(file, "up/outside/.wh..wh..opq")

    unpacked = unpack(cache, image(hostile, removing))
    root = tree_of(cache)
    assert not list((root / str(tmp_path / "outside").lstrip("/")).iterdir())
    assert (root / "again").read_text() == "x"
    assert (root / "l").read_text() == "in place of the link"
    assert unpacked.skipped == 3
    assert not (root / "proc").is_symlink()


def test_bombs_are_cut_at_the_bounds(
    tmp_path: Path, outside: Path, image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = RootCache(tmp_path / "roots", "jobs:0123456789", 1 << 20, OWNER)
    assert "bytes" in refusal(cache, image(lambda file: add(file, "zeros", bytes(8 << 20))))
    monkeypatch.setattr(roots, "MAX_ENTRIES", 100)

    def many(file: tarfile.TarFile) -> None:
        for number in range(200):
            add(file, f"{number}")

    assert "more than 100 files" in refusal(cache, image(many))

    def whited_out(file: tarfile.TarFile) -> None:
        for _ in range(200):
            add(file, "same")

    assert "more than 100 files" in refusal(cache, image(whited_out))
    if shutil.which("mksquashfs"):
        (tmp_path / "source").mkdir()
        with open(tmp_path / "source/sparse", "wb") as file:
            file.truncate(64 << 20)
        assert "bytes" in refusal(cache, squashfs(tmp_path / "source", tmp_path / "image.sqfs", "-no-duplicates"))


@pytest.mark.parametrize(
    "said",
    [
        {"image": {"config": {"Env": [1]}}},
        {"image": {"config": {"Env": ["A=\ud800"]}}},
        {"image": {"config": {"Env": "A=b"}}},
        {"image": {"config": {"WorkingDir": 5}}},
        {"image": {"config": {"WorkingDir": "/\0"}}},
        {"image": {"config": [1]}},
        {"image": {"rootfs": None}},
        {"image": {"rootfs": {"diff_ids": [None]}}},
        {"image": {"rootfs": {"diff_ids": []}}},
        {"image": {"os": ["linux"], "architecture": {"a": 1}}},
        {"manifest": {"layers": [None]}},
        {"manifest": {"layers": {}}},
        {"manifest": {"layers": [{"digest": None, "size": None}]}},
        {"manifest": {"config": None}},
        {"entry": {"mediaType": [], "size": -1}},
        {"entry": {"mediaType": {}, "digest": "sha512:00"}},
        {"entry": {"mediaType": "application/vnd.oci.image.index.v1+json"}},
        {"entry": {"digest": "sha256:../../../etc/passwd"}},
    ],
)
def test_documents_that_say_what_none_does_are_refused_in_words(
    cache: RootCache, image: Callable[..., Path], said: dict[str, dict[str, object]]
) -> None:
    told = refusal(cache, image(lambda file: add(file, "x"), said=said))
    assert told.startswith("root image the image: ")
    assert "ended with" not in told


@pytest.mark.parametrize("broken", ["digest", "content", "missing"])
def test_what_is_not_what_its_digest_says_is_refused(cache: RootCache, image: Callable[..., Path], broken: str) -> None:
    assert "sha256:" in refusal(cache, image(lambda file: add(file, "x", b"content"), broken=broken))


def test_images_for_other_machines_and_no_images_at_all_are_refused(
    cache: RootCache, image: Callable[..., Path], tmp_path: Path
) -> None:
    assert "this machine is linux/" in refusal(cache, image(lambda file: add(file, "x"), architecture="s390x"))
    for data in (b"", b"#!/bin/sh\n", os.urandom(4096), b"hsqs" + bytes(92), b"hsqs" + os.urandom(4096)):
        (tmp_path / "nothing").write_bytes(data)
        refusal(cache, tmp_path / "nothing")


@pytest.mark.skipif(shutil.which("umoci") is None, reason="no umoci")
def test_a_layout_of_another_s_making_is_unpacked(cache: RootCache, tmp_path: Path) -> None:
    """Given an image that umoci has made, with a layer, an environment and a directory."""
    place = tmp_path / "layout"
    (tmp_path / "added").mkdir()
    (tmp_path / "added" / "file").write_text("of umoci\n")
    for command in (
        ["umoci", "init", "--layout", str(place)],
        ["umoci", "new", "--image", f"{place}:latest"],
        ["umoci", "insert", "--image", f"{place}:latest", str(tmp_path / "added"), "/opt"],
        ["umoci", "config", "--image", f"{place}:latest", "--config.env", "X=y", "--config.workingdir", "/opt"],
        ["umoci", "gc", "--layout", str(place)],
    ):
        subprocess.run(command, check=True, capture_output=True)
    with tarfile.open(tmp_path / "layout.tar", "w") as file:
        file.add(place, arcname=".")
    image = unpack(cache, tmp_path / "layout.tar")
    assert (tree_of(cache) / "opt/file").read_text() == "of umoci\n"
    assert (image.variables["X"], image.directory) == ("y", "/opt")


def test_what_a_kill_has_left_is_not_taken_for_an_image(
    cache: RootCache, image: Callable[..., Path], tmp_path: Path
) -> None:
    unpack(cache, image(lambda file: add(file, "x", b"whole")), "a" * 64)
    (cache.directory / ".7" / "tree").mkdir(parents=True)
    (cache.directory / ("b" * 64) / "tree").mkdir(parents=True)
    again = RootCache(tmp_path / "roots", "jobs:0123456789", 64 << 20, OWNER)
    assert list(again._entries) == ["a" * 64]
    assert [path.name for path in again.directory.iterdir()] == ["a" * 64]


def test_what_nobody_uses_goes_when_its_room_is_needed(
    tmp_path: Path, outside: Path, image: Callable[..., Path]
) -> None:
    cache = RootCache(tmp_path / "roots", "jobs:0123456789", 1_000_000, OWNER)
    large: Change = lambda file: add(file, "x", bytes(400_000))  # noqa: E731
    for name in ("a" * 64, "b" * 64):
        unpack(cache, image(large), name)
    cache._entries["a" * 64].holders += 1
    unpack(cache, image(large), "c" * 64)
    assert sorted(cache._entries) == ["a" * 64, "c" * 64]
    cache._entries["c" * 64].holders += 1
    assert sorted(path.name for path in cache.directory.iterdir() if path.name[0] != ".") == ["a" * 64, "c" * 64]


class Inputs:
    """Stands for the inputs of a worker, of which all are there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.held = 0

    async def hold(self, node: object, wanted: object, on_fetch: object) -> Inputs:
        self.held += 1
        return self

    def release(self) -> None:
        self.held -= 1


def test_what_waits_for_room_is_no_input_any_more(tmp_path: Path, outside: Path) -> None:
    """Given room for one image, and a job that has one and could be waiting for room among the inputs."""
    (tmp_path / "inputs").mkdir()
    inputs = Inputs(tmp_path / "inputs")
    for name in ("a" * 64, "b" * 64):
        layout(tmp_path / "inputs" / name, [layer(lambda file: add(file, "x", bytes(400_000)))])

    async def scenario() -> None:
        cache = RootCache(tmp_path / "roots", "jobs:0123456789", 600_000, OWNER)

        def hold(name: str) -> asyncio.Task[roots.HeldRoot]:
            held = cache.hold(None, name * 64, inputs, lambda size: None, lambda: None)  # type: ignore[arg-type]
            return asyncio.ensure_future(held)

        first = await hold("a")
        second, third = hold("b"), hold("b")
        while inputs.held or cache._number < 2:
            await asyncio.sleep(0.01)
        assert not second.done()
        first.release()
        for held in (await second, await third):
            held.release()
        assert [name[:64] for name in cache._entries] == ["b" * 64]
        given_up = hold("a")
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert (inputs.held, [path.name[:1] for path in cache.directory.iterdir()]) == (0, ["b"])

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_whole_tree_of_the_host_s_makes_a_layer(cache: RootCache, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source")
    unpack(cache, layout(tmp_path / "image.tar", [of_tree(source)]))
    assert content(tree_of(cache)) == content(source)
