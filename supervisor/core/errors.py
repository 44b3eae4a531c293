"""The errors that the supervisor raises on purpose, told apart by whose fault they are."""

from __future__ import annotations


class SupervisorError(Exception):
    """Base of all errors raised on purpose: carries a stable `reason` and a text for people.

    `reason` is a snake_case word of the public contract (listed in docs/reasons.md); `detail`
    says what cannot be done, with which values, why, and what to do about it.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class ConfigError(SupervisorError):
    """The supervisor's own configuration cannot be used; `nginx-supervisor run` exits 2."""

    def __init__(self, detail: str, reason: str = "bad_configuration") -> None:
        super().__init__(reason, detail)


class Refusal(SupervisorError):  # noqa: N818 - a word of the vocabulary
    """A request cannot be carried out and nothing was changed; `nginxctl` exits 3."""


class OperationFailed(SupervisorError):  # noqa: N818 - says what happened
    """An operation on nginx was begun and did not succeed."""
