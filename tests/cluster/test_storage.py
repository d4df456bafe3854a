"""A disk that fills up and a folder that becomes read-only in the middle of a run: a clear word, then resume."""

import subprocess
from pathlib import Path

import pytest

from tests.cluster.processes import Job, write_corpus


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 600 KB to write to, and a function that remounts it with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_full_disk_and_lost_permission_then_resume(tiny, tmp_path, small_disk):
    write_corpus(tmp_path / "in", 6000)
    folder, remount = small_disk
    job = Job(tiny, str(tmp_path / "in"), str(folder / "out"))
    process = job.start()
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "the disk is full" in err.splitlines()[-1]
    assert "run the same command again" in err.splitlines()[-1]
    done = job.commits()
    assert done > 0
    assert not list(Path(folder, "out/_raybert/tmp").iterdir())

    remount("size=50m,ro")
    process = job.start()
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "ead-only" in err.splitlines()[-1]
    assert job.commits() == done

    remount("size=50m,rw")
    assert "6,000 embedded + 0 rejected" in job.run()
