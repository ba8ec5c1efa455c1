"""The file that says which cluster a node belongs to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cluster.file import FILE_NAME, Belonging, ClusterFileError, load, save


def test_what_is_saved_is_loaded_and_nothing_is_nothing(tmp_path: Path) -> None:
    assert load(tmp_path) is None
    belonging = Belonging(cluster="c", founder=False, peers={"a": ["10.0.0.1:1"]})
    save(tmp_path, belonging)
    assert load(tmp_path) == belonging
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_written_in_part_is_not_taken_for_whole(tmp_path: Path) -> None:
    """As the disk may have room for a part of it: write() returns how much, and is no error."""
    save(tmp_path, Belonging(cluster="c", founder=True))
    script = """
import resource, sys
from pathlib import Path
from jobs.cluster.file import Belonging, save
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
try:
    save(Path(sys.argv[1]), Belonging(cluster="c", founder=False, peers={"a" * 64: ["10.0.0.1:1"] * 30}))
except OSError as error:
    print(error.strerror)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "File too large\n"
    assert load(tmp_path) == Belonging(cluster="c", founder=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "damaged"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"version": 2}', "version 2; this build knows 1"),
        ('{"version": 1, "cluster": "c"}', "founder"),
        ('{"version": 1, "cluster": "c", "founder": true, "more": 1}', "more"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(ClusterFileError, match=said) as caught:
        load(tmp_path)
    assert str(tmp_path / FILE_NAME) in str(caught.value)
