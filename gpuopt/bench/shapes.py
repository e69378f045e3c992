"""True parameter shapes of models, as short lists, and the sizes that the suites sweep. Read by `suites`; knows no library.

Sources: torchvision's resnet50 (161 tensors), Hugging Face's gpt2 (148), bert-large-uncased (391) and Llama-7B (291).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

Shape = tuple[int, ...]

GPT2 = "gpt2-small"
SIZES = (10**3, 10**4, 10**5, 10**6, 10**7, 64 * 10**6, 10**8, 10**9)
COUNTS = (1, 10, 100, 1_000, 10_000)
SMALL_TENSORS = (64, 1_000, 65_536)
HOST_COUNTS = (1, 150, 1_000, 10_000)


def numel(shapes: tuple[Shape, ...]) -> int:
    """Elements of all tensors together."""
    return sum(prod(shape) for shape in shapes)


def _resnet50() -> Iterator[Shape]:
    yield (64, 3, 7, 7)
    yield from [(64,)] * 2
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield (width, inputs, 1, 1)
            yield from [(width,)] * 2
            yield (width, width, 3, 3)
            yield from [(width,)] * 2
            yield (4 * width, width, 1, 1)
            yield from [(4 * width,)] * 2
            if block == 0:
                yield (4 * width, inputs, 1, 1)
                yield from [(4 * width,)] * 2
            inputs = 4 * width
    yield from ((1000, 2048), (1000,))


def _gpt2_small() -> Iterator[Shape]:
    d = 768
    yield from ((50257, d), (1024, d))
    for _ in range(12):
        yield from ((d,), (d,), (d, 3 * d), (3 * d,), (d, d), (d,))
        yield from ((d,), (d,), (d, 4 * d), (4 * d,), (4 * d, d), (d,))
    yield from ((d,), (d,))


def _bert_large() -> Iterator[Shape]:
    d = 1024
    yield from ((30522, d), (512, d), (2, d), (d,), (d,))
    for _ in range(24):
        yield from ((d, d), (d,)) * 4
        yield from ((d,), (d,), (4 * d, d), (4 * d,), (d, 4 * d), (d,), (d,), (d,))
    yield from ((d, d), (d,))


def _llama_7b() -> Iterator[Shape]:
    d, hidden = 4096, 11008
    yield (32000, d)
    for _ in range(32):
        yield from ((d, d),) * 4
        yield from ((hidden, d), (hidden, d), (d, hidden), (d,), (d,))
    yield from ((d,), (32000, d))


def llama_shard(ranks: int) -> tuple[Shape, ...]:
    """What one of `ranks` data-parallel processes updates: every tensor cut along its first axis, as FSDP does."""
    return tuple((-(-shape[0] // ranks), *shape[1:]) for shape in _llama_7b())


MODELS: dict[str, tuple[Shape, ...]] = {
    GPT2: tuple(_gpt2_small()),
    "resnet50": tuple(_resnet50()),
    "bert-large": tuple(_bert_large()),
    "llama-7b/64": llama_shard(64),
    "llama-7b/8": llama_shard(8),
}
