"""Sums over all tensors of all launches for Numba CUDA: the twin of all_tensors.cuh, one block. Names in capitals are constants;
`load_word` and its like are bound by gpuopt/backends/numba_cuda.py. `D` is float64.
"""

HOLE("constants")


def all_tensors(parts, launches, sums, result):
    shared = cuda.shared.array((2, THREADS), D)
    lane = cuda.threadIdx.x
    for k in range(sums):
        largest = D(0)
        plain = D(0)
        tensors = 0
        for launch in range(launches):
            part = parts + (launch * sums + k) * 3 * 8
            first_total = load_word(part, 0)
            tensors += load_word(part, 1)
            stride = load_word(part, 2)
            for t in range(lane, load_word(part, 1), THREADS):
                value = load_double(first_total + t * stride, 0)
                largest = maximum(absolute(value), largest)
                plain = plain + value
        cuda.syncthreads()  # what was read before is no longer needed
        shared[0, lane] = largest
        shared[1, lane] = plain
        half = THREADS // 2
        while half > 0:
            cuda.syncthreads()
            if lane < half:
                shared[0, lane] = maximum(shared[0, lane], shared[0, lane + half])
                shared[1, lane] = shared[1, lane] + shared[1, lane + half]
            half //= 2
        cuda.syncthreads()
        largest = shared[0, 0]
        found = shared[1, 0]
        if largest - largest == D(0):
            count = 0
            while (1 << count) < tensors:
                count += 1
            exponent = (double_bits(largest) >> 52) - 1022  # all are below 2 to it
            scaling = power_of_two(-128) if exponent + 2 * count > 1000 else D(1)
            if scaling != D(1):
                exponent -= 128
            coarse = mul(D(1.5), power_of_two(exponent + count))
            fine = mul(D(1.5), power_of_two(exponent + 2 * count - 52))
            first = D(0)
            second = D(0)
            for launch in range(launches):
                part = parts + (launch * sums + k) * 3 * 8
                first_total = load_word(part, 0)
                stride = load_word(part, 2)
                for t in range(lane, load_word(part, 1), THREADS):
                    value = mul(load_double(first_total + t * stride, 0), scaling)
                    high = (value + coarse) - coarse
                    rest = value - high
                    first = first + high
                    second = second + ((rest + fine) - fine)
            cuda.syncthreads()
            shared[0, lane] = first
            shared[1, lane] = second
            half = THREADS // 2
            while half > 0:
                cuda.syncthreads()
                if lane < half:
                    shared[0, lane] = shared[0, lane] + shared[0, lane + half]
                    shared[1, lane] = shared[1, lane] + shared[1, lane + half]
                half //= 2
            cuda.syncthreads()
            found = div(shared[0, 0] + shared[1, 0], scaling)
        if lane == 0:
            store_double(result, k, found)
        for launch in range(launches):
            part = parts + (launch * sums + k) * 3 * 8
            first_total = load_word(part, 0)
            stride = load_word(part, 2)
            for t in range(lane, load_word(part, 1), THREADS):
                store_double(first_total + t * stride, 0, found)
