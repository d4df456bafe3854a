"""A Ray of our own on a machine that is too busy for it."""

import subprocess
import sys
from pathlib import Path

SLOW_ONCE = """
import subprocess, sys, time
import ray
from raybert.corpus.session import ray_session

begin, left = ray.init, []

def init(**settings):
    if len(left) < 2 * int(sys.argv[1]):
        wait = [sys.executable, "-c", "import time; time.sleep(600)"]
        left.extend([subprocess.Popen([*wait, ray.__file__]), subprocess.Popen(wait)])
        time.sleep(0.5)
        raise Exception("The current node timed out during startup. This could happen because ...")
    return begin(**settings)

ray.init = init
try:
    with ray_session():
        print(ray.get(ray.remote(lambda: 6 * 7).remote()), left[0].wait(10), left[1].poll())
finally:
    for process in left:
        process.kill()
"""


def run(failures: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SLOW_ONCE, str(failures)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_a_ray_that_does_not_come_up_in_time_is_started_once_more():
    done = run(1)
    assert done.stdout.split() == ["42", "-9", "None"], done.stderr  # what Ray began is ended
    assert done.stderr.count("once more") == 1


def test_one_that_does_not_come_up_twice_is_told_in_a_line():
    done = run(2)
    assert done.returncode == 1
    assert "cannot use the private Ray on this machine: The current node timed out" in done.stderr
