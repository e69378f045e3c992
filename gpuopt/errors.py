"""The errors gpuopt raises on purpose, each a `GpuoptError`; imported by every other module, imports none of them."""

from __future__ import annotations


class GpuoptError(Exception):
    """Base of every error that gpuopt raises on purpose."""


class InputError(GpuoptError, ValueError):
    """A value, shape or layout that cannot be used; the message names the tensor, what was found and what was expected."""


class DtypeError(GpuoptError, TypeError):
    """An array of a kind or dtype that cannot be used (integer, complex, sparse ...)."""


class BackendUnavailable(GpuoptError, RuntimeError):
    """A backend that was asked for by name cannot run here; the message says what is missing and how to install it."""


class CompileError(GpuoptError, RuntimeError):
    """A generated kernel did not compile; the message holds the compiler's log."""


class RuleSyntaxError(GpuoptError, SyntaxError):
    """A rule uses something outside the rule language; carries file name, line number and the offending line."""

    def __init__(self, message: str, filename: str, lineno: int, text: str | None = None) -> None:
        super().__init__(message, (filename, lineno, None, text))
