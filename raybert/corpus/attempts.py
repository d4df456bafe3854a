"""How often a piece of work was begun and not ended. A module of its own: the process that counts needs nothing else."""


class Attempts:
    """What kills its process is known by how often it was begun."""

    def __init__(self) -> None:
        self._begun: dict[str, int] = {}

    def begin(self, key: str) -> int:
        """How often `key` was begun, this time included."""
        self._begun[key] = self._begun.get(key, 0) + 1
        return self._begun[key]

    def end(self, key: str) -> None:
        """All is forgiven: what ended once does not kill."""
        self._begun.pop(key, None)
