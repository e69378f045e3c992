"""The options that hold for a whole optimizer, checked once; options of single groups are in `hyper`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from gpuopt.errors import InputError
from gpuopt.formats import CHOICES, OF_PARAMETERS, formats
from gpuopt.formats.language import Format
from gpuopt.messages import abbreviated
from gpuopt.optim.hyper import check_number, on_gpu, whole
from gpuopt.optim.keeping import Codes
from gpuopt.rules.language import Rule

STATE_FORMATS = ("float32", "bfloat16", *CHOICES)
PARAM_FORMATS = ("native", *OF_PARAMETERS)
HOST = "host"
STATE_DEVICES = ("device", HOST)


@dataclass
class Settings:
    """Options of an optimizer; see Optimizer for what each means."""

    state_format: str | Format | Mapping[str, str | Format] = "float32"
    param_format: str | Format = "native"
    max_grad_norm: float | None = None
    grad_scale: Any = None
    found_inf: Any = None
    skip_nonfinite: bool = False
    capturable: bool = False
    seed: int = 0
    state_device: str = "device"

    def key(self) -> tuple[Any, ...]:
        """What a plan of launches depends on."""
        given = self.state_format
        kept = tuple(given.items()) if isinstance(given, Mapping) else given
        return (
            kept,
            self.param_format,
            self.max_grad_norm is None,
            self.grad_scale is None,
            self.seed,
            self.state_device,
        )

    def __str__(self) -> str:
        """Those that are not as they are by default: `max_grad_norm=1.0, seed=7`."""
        values = ((f, getattr(self, f.name)) for f in fields(self))
        return ", ".join(f"{f.name}={v}" for f, v in values if repr(v) != repr(f.default))

    def check(self, rule: Rule) -> None:
        """Raise InputError naming the value and what is allowed."""
        one_for_all = {} if isinstance(self.state_format, Mapping) else {"": self.state_format}
        for name, value in (one_for_all or self._of_states(rule)).items():
            if isinstance(value, Format):
                check_states_format(value, name)
            elif value not in STATE_FORMATS:
                of = f"state_format of {name!r}" if name else "state_format"
                each = ", or a dict of one for each state" if one_for_all and not isinstance(value, str) else ""
                raise InputError(f"{of} = {value!r}: expected one of {', '.join(STATE_FORMATS)}{each}")
        if not isinstance(self.param_format, Format) and self.param_format not in PARAM_FORMATS:
            known = ", ".join(PARAM_FORMATS)
            raise InputError(f"param_format = {self.param_format!r}: expected one of {known}, or a gpuopt.format")
        if isinstance(self.param_format, Format):
            if not self.param_format.shows:
                raise InputError(
                    f"param_format = {self.param_format!r} is a format of states: expected one whose first plane is the parameter, "
                    "or this one as state_format"
                )
            _ = self.param_format.encoding  # raises RuleSyntaxError where there is none
        self.seed = checked_seed(self.seed)
        for name in ("skip_nonfinite", "capturable"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise InputError(f"{name} = {abbreviated(getattr(self, name))}: expected one of (False, True)")
            setattr(self, name, bool(getattr(self, name)))
        if not isinstance(self.state_device, str) or self.state_device not in STATE_DEVICES:
            raise InputError(
                f"state_device = {abbreviated(self.state_device)}: expected one of {', '.join(STATE_DEVICES)}"
            )
        self.check_capture()
        if self.max_grad_norm is not None:
            self.max_grad_norm = check_number("max_grad_norm", self.max_grad_norm)
        self.check_scale()

    @property
    def on_host(self) -> bool:
        """Whether states are kept in host memory: those with as many numbers as the parameter, or one for a block of it."""
        return self.state_device == HOST

    def check_capture(self) -> None:
        """Raise InputError where steps are to be captured into CUDA graphs and states travel on other streams."""
        if self.capturable and self.on_host:
            raise InputError(
                "state_device = 'host' cannot go with capturable=True: states in host memory travel on streams of their own, which "
                "a CUDA graph of the step would not know; expected one of the two"
            )

    def check_scale(self) -> None:
        """Raise InputError for a grad_scale that no gradient can be divided by; one on a GPU is not waited for. It may be an array
        that changes in itself, so this is asked at every step.
        """
        value = self.grad_scale
        if value is None or self.found_inf is not None:  # a GradScaler knows what it does
            return
        shape = tuple(getattr(value, "shape", ()))
        if math.prod(shape) != 1:
            raise InputError(f"grad_scale: an array of shape {shape}: expected a number or one element")
        if not on_gpu(value, "grad_scale"):
            check_number("grad_scale", value.reshape(()) if shape else value)

    def _of_states(self, rule: Rule) -> dict[str, Any]:
        """State name -> what was asked for; a mapping may use the rule's variable or the state's key, the rest are float32."""
        own = [s for s in rule.states if not s.plane]
        if not isinstance(self.state_format, Mapping):
            return {s.name: "float32" if s.exact else self.state_format for s in own}
        unknown = set(self.state_format) - {s.name for s in own} - {s.key for s in own}
        if unknown:
            known = ", ".join(s.name for s in own) or "none"
            raise InputError(f"state_format names {min(unknown, key=str)!r}: {rule.title} has the states {known}")
        given = self.state_format
        for s in own:
            if s.name != s.key and s.name in given and given.get(s.key, given[s.name]) != given[s.name]:
                raise InputError(f"state_format names one state twice, {s.name!r} and {s.key!r}: expected it once")
        return {s.name: given.get(s.name, given.get(s.key, "float32")) for s in own}

    def formats(self, rule: Rule) -> dict[str, str]:
        """State name -> the dtype of its array where it is not kept in codes: "float32" or "bfloat16"."""
        return {name: "bfloat16" if value == "bfloat16" else "float32" for name, value in self._of_states(rule).items()}

    def codes(self, rule: Rule) -> Codes:
        """The formats of the states that are kept in codes, in the order of the rule: those of the parameter's shape."""
        asked = self._of_states(rule)
        found = []
        for s in (s for s in rule.states if s.walked and not s.plane):
            value = asked[s.name]
            if isinstance(value, Format):
                found.append((s.name, value))
            elif value in CHOICES:
                found.append((s.name, formats()[CHOICES[value][s.holds]]))
        return tuple(found)


def check_states_format(value: Format, name: str) -> None:
    """Raise InputError for a format of parameters, RuleSyntaxError for one without `encode`."""
    if value.shows:
        of = f"state_format of {name!r}" if name else "state_format"
        raise InputError(
            f"{of} = {value!r} is a format of parameters: expected one of states, or this one as param_format"
        )
    _ = value.encoding


def checked_seed(seed: Any) -> int:
    """The seed as Python's own number. Raises InputError for what is no whole number of 64 bits."""
    number = whole(seed)
    if number is None or not 0 <= number < 2**64:
        raise InputError(f"seed = {abbreviated(seed)}: expected a whole number from 0 to 2**64 - 1")
    return number
