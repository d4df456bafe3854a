"""From settings to the engine of a replica."""

from typing import Any

from raybert.config.serving import ServedModelSettings
from raybert.corpus.models import fetch_model
from raybert.corpus.session import cores
from raybert.resolve import prepare_process


def load_engine(served: ServedModelSettings) -> Any:
    """The engine for a model: of an encoder, or of a model with a head.

    Raises ValueError, one line that names the setting, for a model that cannot be loaded or served.
    """
    prepare_process()
    from raybert.encoder.encoder import Encoder
    from raybert.serve.encoding import EncoderEngine

    threads = threads_of(served)
    model = served.model
    encoder = Encoder.load(
        fetch_model(model.name),
        threads=threads,
        batch_tokens=None if served.batch_tokens == "auto" else served.batch_tokens,
        **model.model_dump(exclude={"name"}),
    )
    return EncoderEngine(encoder, threads)


def threads_of(served: ServedModelSettings) -> int:
    """CPUs of a replica: as told, else all of this machine, but where several replicas are to share them."""
    if served.workers.cpus != "auto":
        return served.workers.cpus
    count = served.workers.count
    most = count[1] if isinstance(count, list) else 1 if count == "auto" else count
    return max(1, cores() // most)
