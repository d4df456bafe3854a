"""What the user is told of lost workers."""

from ray.exceptions import RayActorError

from raybert.train.launch import _with_reasons


def test_what_a_worker_raised_is_told_with_its_rank():
    raised = RuntimeError("[/pytorch/gloo/pair.cc:547]\nConnection closed by peer")
    found = _with_reasons(
        {2: raised, 0: RayActorError(error_msg="The actor died\nof this and that"), 1: MemoryError()}
    )
    assert found == "0, 1 (MemoryError: MemoryError), 2 (RuntimeError: Connection closed by peer)"
