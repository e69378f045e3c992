"""The options that hold for a whole optimizer, checked once; options of single groups are in `hyper`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpuopt.errors import InputError
from gpuopt.optim.hyper import check_number
from gpuopt.rules.language import Rule

STATE_FORMATS = ("float32", "bfloat16")
PARAM_FORMATS = ("native",)


@dataclass
class Settings:
    """Options of an optimizer; see Optimizer for what each means."""

    state_format: str | Mapping[str, str] = "float32"
    param_format: str = "native"
    max_grad_norm: float | None = None
    grad_scale: Any = None
    found_inf: Any = None
    skip_nonfinite: bool = False
    capturable: bool = False
    seed: int = 0

    def key(self) -> tuple[Any, ...]:
        """What a plan of launches depends on."""
        formats = self.state_format if isinstance(self.state_format, str) else tuple(self.state_format.items())
        return formats, self.param_format, self.max_grad_norm is None, self.grad_scale is None, self.seed

    def check(self, rule: Rule) -> None:
        """Raise InputError naming the value and what is allowed."""
        for name, value in self.formats(rule).items():
            if value not in STATE_FORMATS:
                raise InputError(f"state_format of {name!r} = {value!r}: expected one of {', '.join(STATE_FORMATS)}")
        if self.param_format not in PARAM_FORMATS:
            raise InputError(f"param_format = {self.param_format!r}: expected one of {', '.join(PARAM_FORMATS)}")
        if isinstance(self.seed, bool) or not hasattr(self.seed, "__index__") or not 0 <= self.seed < 2**64:
            raise InputError(f"seed = {self.seed!r}: expected a whole number from 0 to 2**64 - 1")
        for name in ("max_grad_norm", "grad_scale"):
            value = getattr(self, name)
            if value is not None and not hasattr(value, "shape"):
                check_number(name, value)
            elif value is not None and math.prod(value.shape) != 1:
                raise InputError(f"{name}: an array of shape {tuple(value.shape)}: expected a number or one element")

    def formats(self, rule: Rule) -> dict[str, str]:
        """State name -> format; a mapping may use the rule's variable or the state's key, the rest are float32."""
        if isinstance(self.state_format, str):
            return {s.name: self.state_format for s in rule.states}
        if not isinstance(self.state_format, Mapping):
            raise InputError(f"state_format = {self.state_format!r}: expected a name, or a dict of one for each state")
        unknown = set(self.state_format) - {s.name for s in rule.states} - {s.key for s in rule.states}
        if unknown:
            known = ", ".join(s.name for s in rule.states)
            raise InputError(f"state_format names {sorted(unknown)[0]!r}: {rule.title} has the states {known}")
        given = self.state_format
        return {s.name: given.get(s.name, given.get(s.key, "float32")) for s in rule.states}
