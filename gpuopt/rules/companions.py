"""Options that keep another parameter beside each, as fragments of the rule language: an average of it, and slow weights.

`options` puts them behind every rule; `optim.companions` says which states they need. A number of the step count follows from it by
exactly rounded operations, so that it is the same where the count lives on a device. Knows no rule.
"""

from __future__ import annotations

from typing import Any

from gpuopt.rules.fragments import Fragment
from gpuopt.rules.primitives import where


@Fragment
def looking_ahead(p: Any, slow: Any, *, step: Any, lookahead_steps: Any, lookahead_pull: Any, pulled: bool) -> Any:
    """Zhang et al. 2019: every so many steps the slow weights go a part of the way to the parameter, which begins anew from them.
    A quotient is whole where it survives the addition of 2^52, the last bit of which is a one.
    """
    if pulled:
        met = where((step / lookahead_steps + 4503599627370496.0 - 4503599627370496.0) * lookahead_steps == step, 1, 0)
        slow = where(met != 0, slow + (p - slow) * lookahead_pull, slow)
        p = where(met != 0, slow, p)
    return p, slow


@Fragment
def averaging(p: Any, ema: Any, *, step: Any, ema_decay: Any, tail_start: Any, tail_length: Any, averaged: bool) -> Any:
    """The average of the parameters that are stored, before they are rounded; before a tail begins it is the parameter itself."""
    if averaged:
        share = where(step < tail_start, 1, (1 - ema_decay) / tail_length)
        ema = where(share < 1, ema + (p - ema) * share, p)
    return ema
