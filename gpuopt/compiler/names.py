"""A rule's variables under names that cannot meet any other name in a generated text. Used by all emitters.

Whatever the author of a rule called a variable, its target name ends with an underscore, and no name of ours does: no list of
reserved words to keep. Names of the options' fragments carry an "@" in the tree (see `lower`), which no Python name can.
"""

OPTION = "@"


def safe(name: str) -> str:
    """The target name of a variable: `p` is `p_`, the option `@lr` is `option_lr`, letters beyond ASCII are spelled out."""
    if name.startswith(OPTION):
        return f"option_{name.removeprefix(OPTION)}"
    return "".join(c if c.isascii() else f"u{ord(c):x}" for c in name) + "_"
