"""Sums of parts of tensors into one buffer and back, for Numba CUDA: the twin of exchange.cuh, one block. Names in capitals are
constants; `load_word` and its like are bound by gpuopt/backends/numba_cuda.py. `D` is float64.
"""

HOLE("constants")


def exchange(parts, count, numbers, buffer, back, largest):
    first = 0
    for k in range(count):
        part = parts + 3 * k * 8
        first_total = load_word(part, 0)
        tensors = load_word(part, 1)
        stride = load_word(part, 2)
        for t in range(cuda.threadIdx.x, tensors, THREADS):
            total = first_total + t * stride
            there = first + t
            if back != 0:
                value = load_double(buffer, there)
                if largest != 0 and load_double(buffer, numbers + there) > D(0):
                    value = D(1e999) - D(1e999)
                store_double(total, 0, value)
            elif largest != 0:
                value = load_double(total, 0)
                number = value == value
                store_double(buffer, there, value if number else D(-1e999))
                store_double(buffer, numbers + there, D(0) if number else D(1))
            else:
                store_double(buffer, there, load_double(total, 0))
        first += tensors
