"""Settings that do not go together. For the driver, without torch."""

import shutil


def refuse_combinations(*, optimizer: str, zero: int, offload: bool, precision: str) -> None:
    """Raise ValueError, before anything starts, for settings that DeepSpeed would compute wrongly or not at all."""
    if optimizer == "lamb" and zero:
        raise ValueError(
            f"train.optimizer=lamb needs the norm of every whole tensor, train.zero={zero} cuts tensors into pieces; "
            "set train.zero=0 or train.optimizer=adamw"
        )
    if precision == "float16" and not zero:
        raise ValueError(
            "train.precision=float16 needs the loss scaling of ZeRO; set train.zero=1 or train.precision=bfloat16"
        )
    if offload and not zero:
        raise ValueError(
            "train.offload=true keeps what ZeRO cuts up; set train.zero=2 or train.offload=false"
        )
    if offload and not (shutil.which("g++") and shutil.which("ninja")):
        raise ValueError(
            "train.offload=true compiles DeepSpeed's CPU Adam and needs g++ and ninja on every node; "
            "install them or set train.offload=false"
        )
