"""What the commands of `gpuopt` share: the parser of a command line, and the exit code of one that was interrupted.

Used by `gpuopt.cli` and `gpuopt.bench`, which parses a line of its own. Knows no command.
"""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from gpuopt.messages import suggestion

INTERRUPTED = 130  # as shells have it


class Parser(argparse.ArgumentParser):
    """An argument parser that, for a misspelt word, adds the one that was probably meant."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse has it; what is not known is an error here already, where the options of the command are known."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            options = re.findall(r"--[\w-]+", self.format_help())
            self.error(f"unrecognized arguments: {' '.join(unknown)}{suggestion(unknown[0], options)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Exit code 2 with a line of usage and the message."""
        if choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            message += suggestion(choice[1], re.findall(r"[\w-]+", choice[2]))
        super().error(message)
