"""A word to the user where the driver dies with its cluster: Ray then ends the process from C++, without any."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

# Runs in a process of its own, which outlives the driver. A driver that is killed from outside leaves a cluster that answers.
_WATCH = """
import socket, sys
text, *places = sys.argv[1:]
if not sys.stdin.read():
    for place in places:
        host, _, port = place.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), 5).close()
        except OSError:
            sys.exit(text)
"""


@contextlib.contextmanager
def last_word(shown: str) -> Iterator[None]:
    """While connected to Ray: a line on standard error where this process ends because its cluster did.

    Args:
        shown: what the user calls the cluster.
    """
    text = f"raybert: {shown} is gone: its head or the node of this driver died; what is finished stays, run the same command again on a living one"
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCH, text, *_places()],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us
    )
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            watcher.communicate(b"the session ended")


def _places() -> list[str]:
    """Where the cluster's head and this node's raylet answer, each HOST:PORT."""
    import ray

    context = ray.get_runtime_context()
    (here,) = (node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    return [context.gcs_address, f"{here['NodeManagerAddress']}:{here['NodeManagerPort']}"]
