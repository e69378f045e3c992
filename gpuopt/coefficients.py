"""Coefficients of the iterations that bring singular values near 1, by name.

Read by `gpuopt.linalg`, which iterates. Knows no matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

Row = tuple[float, ...]  # (a, b, c): x <- a x + b (x x') x + c (x x')^2 x; without c of degree 3


@dataclass(frozen=True)
class Coefficients:
    """Those of an iteration, one row a step, the last one repeated where more steps are asked for. safety, floor: the matrix is
    divided by max(norm, floor) * safety before the first step; tight: then by the root of the norm of x x', which is nearer to its
    largest singular value; rows: by the root of what its rows have in common with all others instead, each of its own (AOL, Prach &
    Lampert 2022).
    """

    table: tuple[Row, ...]
    safety: float = 1.0
    floor: float = 1e-7
    tight: bool = False
    rows: bool = False

    def steps(self, count: int | None) -> list[Row]:
        """The rows of so many steps; of as many as there are for None."""
        count = len(self.table) if count is None else count
        return [self.table[min(k, len(self.table) - 1)] for k in range(count)]


_KELLER = (3.4445, -4.7750, 2.0315)
_CONVERGING = (2.0, -1.5, 0.5)
COEFFICIENTS: dict[str, Coefficients] = {
    # Jordan et al. 2024, what torch has.
    "keller": Coefficients((_KELLER,) * 5),
    # Amsel et al. 2025, as the records of training have it.
    "polar_express": Coefficients(
        (
            (8.156554524902461, -22.48329292557795, 15.878769915207462),
            (4.042929935166739, -2.808917465908714, 0.5000178451051316),
            (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
            (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
            (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
        ),
        safety=1.02,
    ),
    # Of degree 3: two products a step, where others take three.
    "cubic5": Coefficients(
        (
            (3.3656576, -3.3420992),
            (2.5744352, -1.4957376),
            (2.5368962, -1.4312570),
            (2.4418906, -1.2764040),
            (2.2230472, -0.9630650),
        )
    ),
    # Grishina et al. 2025.
    "cans": Coefficients(
        (
            (8.4703, -25.1081, 18.6293),
            (4.1828, -3.1087, 0.5806),
            (3.9619, -2.9541, 0.5630),
            (3.2866, -2.4647, 0.5074),
            (2.2737, -1.6447, 0.4162),
        )
    ),
    # Boissin et al. 2025: a step less behind rows that are scaled one by one.
    "aol": Coefficients(
        (
            (4.0098, -7.0585, 2.4635),
            (3.4585, -5.5479, 2.5959),
            (2.7573, -3.2939, 1.4254),
            (2.7215, -3.0494, 1.3169),
        ),
        rows=True,
    ),
    # Eight steps that grow fast and two that converge: singular values are 1 to three digits.
    "deepseek": Coefficients((_KELLER,) * 8 + (_CONVERGING,) * 2),
    # Those of Jordan et al. 2024 that converge: singular values of 0.001 of the largest one and more are 1 to five digits.
    "converging": Coefficients((_CONVERGING,) * 12, tight=True),
}
