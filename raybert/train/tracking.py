"""Curves for people: TensorBoard, Weights & Biases or MLflow, written by rank 0."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


def refuse_missing(names: Sequence[str]) -> None:
    """Raise ValueError for a tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise ValueError(
                f"track={name} needs the package {_PACKAGES[name]}: pip install {_PACKAGES[name]}, or set track=[]"
            )


class Trackers:
    """All of `names`; each gets every figure of `log`.

    Args:
        folder: local folder for TensorBoard's files.
        run: what the run is called.
        settings: shown beside the curves.
        step: where the run goes on; what TensorBoard has of later steps is hidden.
    """

    def __init__(
        self, names: Sequence[str], folder: str, run: str, settings: Mapping[str, Any], *, step: int = 0
    ) -> None:
        self._board: Any = None
        self._wandb: Any = None
        self._mlflow: Any = None
        if "tensorboard" in names:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(folder, purge_step=step + 1)
        if "wandb" in names:
            import wandb

            self._wandb = wandb.init(
                project="raybert", name=run, id=run, resume="allow", config=dict(settings)
            )
        if "mlflow" in names:
            import mlflow

            self._mlflow = mlflow
            mlflow.start_run(run_name=run)
            mlflow.log_dict(dict(settings), "config.json")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Figures of a step, by names such as train/loss."""
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)
        if self._mlflow is not None:
            self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        """Write what is left."""
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()
        if self._mlflow is not None:
            self._mlflow.end_run()
