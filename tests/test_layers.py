"""The drawing of the imports: who may import whom. Fails when an import goes up or a circle appears.

Imports inside functions count, and `import_module` with the name of a module of ours; those under `if TYPE_CHECKING` do not, since
nothing runs. What goes up on purpose, late and inside of a function, is listed with its reason.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

import pytest

from repository import FILES, ROOT

pytestmark = pytest.mark.once
PACKAGE = "gpuopt"
# From the lowest to the highest. A module belongs to the entry that names it, else its package, else the nearest package above.
# It may import what stands in a lower line, and in its own line whatever makes no circle.
LAYERS = (
    ("errors", "messages", "line", "driver", "native"),  # words and the machine; no array, no rule
    ("formats.dtypes", "formats.philox"),
    ("rules.primitives", "rules.products", "rules.between"),  # the operations of the language; functions beside a rule
    ("coefficients", "householder"),  # numbers of iterations on matrices; their orthogonal factors
    ("arrays", "dlpack", "numba_arrays", "pairs", "strides", "pinned", "linalg", "bases", "tensor_file"),
    ("draws", "projections", "selections", "whitening"),  # products of matrices
    ("launch.table", "launch.stream"),  # the columns that host and kernels agree on
    # Python's text and names, and how they become a tree; no rule
    ("compiler.tree", "compiler.names", "compiler.origin", "compiler.resolve", "compiler.inline", "compiler.whole"),
    ("compiler.kinds", "compiler.extremes"),
    ("compiler.grammar", "compiler.parse"),
    ("rules.declared", "rules.definition", "rules.language", "formats"),
    ("rules",),
    ("compiler",),
    ("launch",),
    ("backends",),
    ("optim",),
    ("schedules", "streams", "source", "lookup", "attention"),
    ("rule_table", "minimizing", "distributed"),
    ("torch", "native.torch"),
    ("",),  # gpuopt itself, whose names are looked up in all of these when they are first asked for
    ("info", "drawing", "spaces"),
    ("sizes",),
    ("sklearn",),
    ("training",),
    ("cli", "bench", "demos", "__main__"),
)
# (from, to) -> why this one goes up or closes a circle. Each is inside of a function.
ON_PURPOSE = {
    ("arrays", "numba_arrays"): "arrays known by their interface alone; imports Numba CUDA, so only where one is met",
    ("arrays", "torch.tensors"): "a torch tensor was met: the adapter registers its kind",
    ("dlpack", "arrays"): "an array of an unknown library is handled as that of NumPy or CuPy over its memory",
    ("rules.language", "rules.find"): "a rule is pickled by where it can be imported",
    ("compiler.parse", "optim.reserved"): "names of options, read off where options are defined: no second list",
    ("compiler.numba_cpu", ""): "the version, in the key of the cache on the disk",
    ("compiler.numba_gpu", ""): "the version, in the key of the cache on the disk",
    ("compiler.nvrtc", ""): "the version, in the key of the cache on the disk",
}


@cache
def modules() -> dict[str, ast.Module]:
    """Name below the package -> its text, parsed; the package itself is the empty name."""
    found = {}
    for path in FILES:
        if path.parts[0] == PACKAGE and path.suffix == ".py":
            parts = path.with_suffix("").parts[1:]
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse((ROOT / path).read_text())
    return found


def named(node: ast.AST) -> Iterator[str]:
    """Full names of what one import statement, or call of import_module, asks for, the longest that may be modules."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, "imports are written in full"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        yield from (str(word.value) for word in node.args[:1] if isinstance(word, ast.Constant))


def walk(node: ast.AST, inside: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node that runs, and whether it stands inside of a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        deeper = inside or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield child, deeper
        yield from walk(child, deeper)


@cache
def imports() -> dict[tuple[str, str], bool]:
    """(from, to) of every import of a module of ours by another -> whether all of them are inside of functions."""
    found: dict[tuple[str, str], bool] = {}
    for name, tree in modules().items():
        for node, inside in walk(tree):
            for target in named(node):
                known = [m for m in modules() if f"{target}.".startswith(f"{PACKAGE}.{m}." if m else f"{PACKAGE}.")]
                if known:
                    edge = name, max(known, key=len)
                    found[edge] = found.get(edge, True) and inside
    return {edge: late for edge, late in found.items() if edge[0] != edge[1]}


def layer(name: str) -> int:
    """The number of the line that a module stands in: of the longest entry that it is or is in."""
    fits = [(len(entry), k) for k, line in enumerate(LAYERS) for entry in line if f"{name}.".startswith(f"{entry}.")]
    assert fits or not name, f"{name} stands in no layer: expected its place in LAYERS"
    return max(fits)[1] if name else next(k for k, line in enumerate(LAYERS) if "" in line)


def circles(edges: set[tuple[str, str]]) -> list[list[str]]:
    """Groups of modules each of which is reached from each other by these imports."""
    ahead: dict[str, set[str]] = defaultdict(set)
    for source, target in edges:
        ahead[source].add(target)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            todo += (new := ahead[todo.pop()] - seen)
            seen |= new
        return seen

    every = {name: reached(name) for name in sorted(ahead)}
    groups = {tuple(sorted(m for m in every if m in every[name] and name in every[m])) for name in every}
    return sorted([list(group) for group in groups if group])


def test_the_imports_are_found() -> None:
    """Of each kind one: at the top of a file, inside of a function, by its name alone."""
    assert imports()["cli", ""] is False and imports()["cli", "demos"] and imports()["arrays", "torch.tensors"]
    assert ("compiler.lower", "rules.definition") not in imports(), "what is imported for types only does not count"
    assert circles({("a", "b"), ("b", "a"), ("b", "c")}) == [["a", "b"]]


def test_no_import_goes_up() -> None:
    up = {(a, b) for a, b in imports() if layer(a) < layer(b)} - ON_PURPOSE.keys()
    assert sorted(up) == []


def test_no_circle() -> None:
    assert circles(imports().keys() - ON_PURPOSE.keys()) == []


def test_what_goes_up_on_purpose_does_so_late_and_is_still_there() -> None:
    assert sorted(edge for edge in ON_PURPOSE if edge not in imports()) == []
    assert sorted(edge for edge in ON_PURPOSE if not imports()[edge]) == []
