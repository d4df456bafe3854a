"""CPUs and GPUs of replicas, settled once, before they are started."""

from raybert.config import ConfigError
from raybert.config.serving import ServeConfig, ServedModelSettings
from raybert.corpus.session import cores


def settle(config: ServeConfig) -> dict[str, ServedModelSettings]:
    """The models by name, with numbers for `workers.cpus` and `workers.gpus`.

    CPUs are those of this machine, shared alike by all replicas that may be there; on a cluster of other machines give
    the number. A replica gets a GPU where the cluster shows any now.
    """
    served = config.served
    replicas = sum(range_of(one)[1] for one in served.values())
    gpus = 1.0 if _gpus_here() else 0.0
    found = {}
    for name, one in served.items():
        workers = one.workers
        settled = {
            "cpus": max(1, cores() // replicas) if workers.cpus == "auto" else workers.cpus,
            "gpus": gpus if workers.gpus == "auto" else workers.gpus,
        }
        found[name] = one.model_copy(update={"workers": workers.model_copy(update=settled)})
    return found


def check_fits(served: dict[str, ServedModelSettings], cpus: int) -> None:
    """Raise ConfigError where the first replicas of all models need more CPUs than there are: they would wait for ever."""
    wanted = {name: range_of(one)[0] * int(one.workers.cpus) for name, one in served.items()}
    if sum(wanted.values()) > cpus:
        told = ", ".join(
            f"{name} {range_of(one)[0]} x {one.workers.cpus} CPUs" for name, one in served.items()
        )
        raise ConfigError(
            f"the replicas do not fit on the {cpus} CPUs of this machine ({told}); lower workers.count or workers.cpus"
        )


def range_of(served: ServedModelSettings) -> tuple[int, int]:
    """The least and the most replicas; auto is one."""
    count = served.workers.count
    if isinstance(count, list):
        return count[0], count[1]
    return (1, 1) if count == "auto" else (count, count)


def _gpus_here() -> bool:
    import ray

    return ray.is_initialized() and ray.cluster_resources().get("GPU", 0) >= 1
