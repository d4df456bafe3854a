"""What goes wrong with a request, and how the two dialects say so (INTERFACES: OpenAI's envelope, TEI's error_type)."""

import math
from dataclasses import dataclass, field
from typing import Any

_OPENAI = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error"}
_OPENAI |= {429: "rate_limit_error"}
_TEI_STATUS = {400: 422, 404: 404, 500: 424, 504: 424}
_TEI_TYPES = {
    **{400: "Empty", 413: "Validation", 422: "Validation", 424: "Backend", 429: "Overloaded"},
    **{503: "Unhealthy"},
}


@dataclass
class ApiError(Exception):
    """A request that gets an error for an answer.

    Args:
        status: of HTTP, as OpenAI's clients expect it.
        message: one line for whoever wrote the request.
        param: the field of the request that it is about.
        code: a word that programs can compare with.
        retry_after: seconds until it may be tried again.
        kind: TEI's error_type, where the status does not say it.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after: float | None = None
    kind: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self, dialect: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON in the words of a dialect, "openai" or "tei"."""
        if dialect == "tei":
            status = 400 if self.kind == "Empty" else _TEI_STATUS.get(self.status, self.status)
            kind = self.kind or _TEI_TYPES.get(status, "Validation" if status < 500 else "Backend")
            return status, {"error": self.message, "error_type": kind}
        kind = _OPENAI.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return self.status, {"error": error}

    def all_headers(self) -> dict[str, str]:
        """With Retry-After where there is a time."""
        if self.retry_after is None:
            return self.headers
        return {**self.headers, "retry-after": str(max(1, math.ceil(self.retry_after)))}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that cannot be answered as it is."""
    return ApiError(400, message, param, code)
