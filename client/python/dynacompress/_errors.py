"""What a failed call raises."""

from __future__ import annotations


class Error(Exception):
    """A call was refused or failed; `code` says what can be done about it.

    code: "MISS", "RETRY", "QUOTA", "TOO_LARGE", "INVALID", "UNAUTHENTICATED", "UNSUPPORTED",
        "DEADLINE", "CANCELLED", "IN_DOUBT", "LEASE_LOST", "CONTEXT_UNKNOWN" or "INTERNAL".
    retry_after_ms: with RETRY, when to ask again.
    """

    def __init__(self, code: str, message: str = "", retry_after_ms: int = 0) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.retry_after_ms = retry_after_ms
