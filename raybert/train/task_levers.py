"""Levers that mean nothing, or cannot be had, for some tasks. For the driver, without torch."""

from raybert.config.finetune import FinetuneConfig
from raybert.config.pair_tasks import RetrievalSettings, SimilaritySettings
from raybert.config.tasks import GenerationSettings
from raybert.train.generation_job import refuse_generation


def refuse_task_levers(config: FinetuneConfig) -> None:
    """Raise ValueError for a lever that the task cannot have."""
    if isinstance(config.task, RetrievalSettings | SimilaritySettings):
        _refuse_of_vectors(config)
    if isinstance(config.task, GenerationSettings):
        refuse_generation(config)


def _refuse_of_vectors(config: FinetuneConfig) -> None:
    """A bi-encoder has no head, and gives vectors instead of probabilities."""
    task = config.task.name
    for key in ("r_drop", "label_smoothing"):
        if getattr(config.regularize, key):
            raise ValueError(
                f"regularize.{key} is of probabilities of labels, task.name={task} has none; leave it out"
            )
    if config.freeze.layers == "all":
        raise ValueError(
            f"freeze.layers=all leaves nothing to train with task.name={task}, which has no head"
        )
    if config.freeze.gradual:
        raise ValueError(f"freeze.gradual begins with the head, and task.name={task} has none; leave it out")
    if config.adapter.name in ("prefix", "bottleneck", "bitfit"):
        raise ValueError(
            f"adapter.name={config.adapter.name} is saved beside its base, which a sentence-transformers folder cannot "
            f"hold; take lora, adalora or none with task.name={task}"
        )
    whole = isinstance(config.task, RetrievalSettings) or config.task.loss == "cosent"
    if config.adversarial.name != "none" and whole:
        other = "" if isinstance(config.task, RetrievalSettings) else "set task.loss=cosine, or "
        raise ValueError(
            f"adversarial.name={config.adversarial.name} needs the loss of each forward pass, and this one compares the "
            f"vectors of a whole batch; {other}leave it out"
        )
