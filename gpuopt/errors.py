"""The errors gpuopt raises on purpose, each a `GpuoptError`; imported by every other module, imports none of them.

An error is for the person who made the mistake: `caller` says where that was, `outside` takes our own frames out of a traceback.
"""

from __future__ import annotations

import linecache
import os
import pickle
import sys
from types import TracebackType
from typing import TypeVar

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
E = TypeVar("E", bound=BaseException)


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


class RulePicklingError(GpuoptError, pickle.PicklingError):
    """A rule of a user's own cannot be found again by name, so what holds it cannot be pickled."""


class RuleSyntaxError(GpuoptError, SyntaxError):
    """A rule uses something outside the rule language; carries file name, line number, the offending line and its columns.

    columns: the first column and the one behind the last, counted from 1, of what is wrong on that line; None for all of it.
    """

    def __init__(self, message: str, filename: str, lineno: int, columns: tuple[int, int] | None = None) -> None:
        text = linecache.getline(filename, lineno).rstrip() or None
        if text is not None and columns is None:
            columns = len(text) - len(text.lstrip()) + 1, len(text) + 1
        begin, end = columns or (None, None)
        super().__init__(message, (filename, lineno, begin, text, lineno, end))


def caller() -> tuple[str, int]:
    """File and line of the innermost frame that is not gpuopt's own."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def outside(error: E) -> E:
    """The error without gpuopt's own frames in its traceback; what raises it again adds one."""
    kept, at = [], error.__traceback__
    while at is not None:
        if not at.tb_frame.f_code.co_filename.startswith(_HERE):
            kept.append(at)
        at = at.tb_next
    made: TracebackType | None = None
    for at in reversed(kept):
        made = TracebackType(made, at.tb_frame, at.tb_lasti, at.tb_lineno)
    return error.with_traceback(made)
