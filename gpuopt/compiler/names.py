"""A rule's variables under names that cannot meet any other name in a generated text. Used by all emitters.

Whatever the author of a rule called a variable, its target name ends with an underscore, and no name of ours does: no list of
reserved words to keep. Names of the options' fragments (see `lower`) and of parts of a rule (see `inline`) carry an "@" in the
tree, which no Python name can.
"""

from __future__ import annotations

import math

OPTION = "@"
GIVEN = "@given"  # in an environment: the group of hyperparameters as the caller wrote it
PREPARE = "@prepare_"  # in front of the variables of a prepare function
CODE = "@code_"  # in front of a value's name: its code, and the variables of its format
OPERAND = "@operand_"  # and a number, of a product of matrices
RESULT = "@result_"
DRAW = "draw()"  # of what a product takes: its random numbers
PART = "@in_"  # and the name of the function, in front of the variables of a part of a rule


def safe(name: str) -> str:
    """The target name of a variable: `p` is `p_`, the option `@lr` is `option_lr`, letters beyond ASCII are spelled out."""
    plain = "".join(c if c.isascii() and c != OPTION else f"u{ord(c):x}" for c in name.removeprefix(OPTION))
    return f"option_{plain}" if name.startswith(OPTION) else f"{plain}_"


def literal(value: float, infinity: str) -> str:
    """A number as text of a language that has no name for what lies beyond its largest number but `infinity`."""
    if value != value:
        return f"({infinity} - {infinity})"
    return f"({'-' if value < 0 else ''}{infinity})" if math.isinf(value) else repr(value)
