"""raybert doctor: asks the nodes, judges, prints one table. The driver needs no torch and no GPU."""

from collections.abc import Sequence
from dataclasses import dataclass

from raybert.config.doctor import DoctorConfig
from raybert.corpus.session import ray_session
from raybert.doctor.cluster_checks import check_cluster
from raybert.doctor.findings import FAIL, Finding, table, to_json
from raybert.doctor.job_checks import check_job
from raybert.doctor.needs import needs_of


@dataclass(frozen=True)
class Diagnosis:
    """All findings, and the names of the nodes."""

    findings: Sequence[Finding]
    nodes: Sequence[str]

    @property
    def fit(self) -> bool:
        """Whether nothing failed; there may be warnings."""
        return not any(finding.state == FAIL for finding in self.findings)

    def __str__(self) -> str:
        return table(self.findings, len(self.nodes))


def main(config: DoctorConfig) -> int:
    """The command: examine, print the findings. Returns 0, or 1 if a check failed."""
    found = diagnose(config)
    print(to_json(found.findings, found.nodes) if config.doctor.format == "json" else found)
    return 0 if found.fit else 1


def diagnose(config: DoctorConfig) -> Diagnosis:
    """Examine the cluster of RAY_ADDRESS, or a private Ray on this machine, and the job if `config` has one.

    Writes and removes small files below output.path; loads the model once; uses no hub unless doctor.hub is true.

    Raises:
        ValueError: settings that the job's verb would refuse, too.
        RuntimeError: there is no Ray to be had.
    """
    needs = needs_of(config.doctor.verb or "", config.job)
    with ray_session():
        from raybert.doctor.gather import gather

        facts = gather(needs, timeout=config.doctor.timeout, hub=config.doctor.hub)
    return Diagnosis([*check_cluster(facts, needs), *check_job(facts, needs)], facts.names)
