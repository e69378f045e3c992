"""The errors gpuopt raises on purpose, each a `GpuoptError`; imported by every other module, imports none of them.

An error is for the person who made the mistake: `caller` says where that was, `outside` takes our own frames out of a traceback.
"""

from __future__ import annotations

import linecache
import os
import pickle
import sys
from collections.abc import Callable
from functools import wraps
from types import FunctionType, TracebackType
from typing import ParamSpec, TypeVar

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
E = TypeVar("E", bound=BaseException)
P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)


class GpuoptError(Exception):
    """Base of every error that gpuopt raises on purpose."""


class InputError(GpuoptError, ValueError):
    """A value, shape or layout that cannot be used; the message names the tensor, what was found and what was expected."""


class DtypeError(GpuoptError, TypeError):
    """An array of a kind or dtype that cannot be used (integer, masked, sparse ...)."""


class KindError(InputError, TypeError):
    """What stands for a hyperparameter is no number at all (text, None, a list)."""


class ArgumentError(InputError, TypeError):
    """An argument that a call lacks, has twice, has too many of or does not know, where Python raises TypeError."""


class OptionError(InputError, RuntimeError):
    """Options that exclude each other, where torch raises RuntimeError."""


class DeviceError(InputError, RuntimeError):
    """A tensor on a device that no backend works on; torch too raises RuntimeError for what its kernels cannot take."""


class LayoutError(DtypeError, RuntimeError):
    """A sparse tensor, where only dense ones can be used; torch too raises RuntimeError for those."""


class FileError(InputError):
    """A file that is damaged, cut off, or no such file at all, so that an older one is to be taken; the message names the place."""


class BackendUnavailable(GpuoptError, RuntimeError):
    """A backend that was asked for by name cannot run here; the message says what is missing and how to install it."""


class CompileError(GpuoptError, RuntimeError):
    """A generated kernel did not compile; the message holds the compiler's log."""


class CommunicationError(GpuoptError, RuntimeError):
    """Another process is gone, or the library that sends messages gave up; the message holds what it said."""


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


def entry(function: Callable[P, R]) -> Callable[P, R]:
    """A function that users call: its GpuoptErrors leave without our own frames, this one apart."""

    @wraps(function)
    def entered(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except GpuoptError as error:
            raise outside(error) from error.__cause__

    return entered


def entries(made: C) -> C:
    """A class whose constructor and public methods are each an `entry`."""
    for name, member in list(vars(made).items()):
        if isinstance(member, FunctionType) and (name == "__init__" or not name.startswith("_")):
            setattr(made, name, entry(member))
    return made
