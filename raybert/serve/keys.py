"""Who may ask: bearer keys from the environment or a file, compared in constant time."""

import hashlib
import hmac
import os
import time
from pathlib import Path

from raybert.serve.errors import ApiError

_LOOK_AGAIN = 5.0  # seconds after which a file of keys is read again


class Keys:
    """`check` refuses requests without a known key. A file is read again when it changes, so keys can be replaced while
    the service runs; keys are kept as digests and appear in no message.

    Args:
        source: env:NAME, a variable with keys apart by commas or blanks, or the path of a file with a key a line, where
            lines that begin with # say nothing.

    Raises:
        ValueError: there is no key.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._stamp: tuple[int, int] | None = None
        self._looked = 0.0
        self._digests: list[bytes] = []
        self._refresh()
        if not self._digests:
            raise ValueError(f"serve.keys_from={source} holds no key: give one, or set serve.anonymous=true")

    def check(self, authorization: str | None) -> None:
        """Raise ApiError 401 unless the header is `Bearer KEY`."""
        self._refresh()
        scheme, _, key = (authorization or "").strip().partition(" ")
        digest = _digest(key.strip())
        # all are compared, so that the time tells nothing of which was near
        known = sum(hmac.compare_digest(digest, each) for each in self._digests)
        if scheme.lower() != "bearer" or not known:
            what = "the key is not known" if key else "a key is needed"
            raise ApiError(
                401,
                f"{what}: send it as `Authorization: Bearer KEY`",
                code="invalid_api_key",
                kind="Unauthorized",
                headers={"www-authenticate": "Bearer"},
            )

    def _refresh(self) -> None:
        now = time.monotonic()
        if self._digests and now - self._looked < _LOOK_AGAIN:
            return
        self._looked = now
        if self._source.startswith("env:"):
            texts = os.environ.get(self._source[4:], "").replace(",", " ").split()
        else:
            texts = self._read_file()
        if texts:  # a file that is being replaced must not let nobody in
            self._digests = [_digest(text) for text in texts]

    def _read_file(self) -> list[str]:
        path = Path(self._source)
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if stamp == self._stamp:
                return []
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            if self._digests:
                return []
            raise ValueError(f"serve.keys_from={self._source} cannot be read: {error}") from None
        self._stamp = stamp
        return [line for line in lines if line and not line.startswith("#")]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
