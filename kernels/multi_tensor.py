"""The walk for Numba CUDA: the twin of multi_tensor.cuh, which tells of tables, tiles and units.

A line HOLE("name") is where gpuopt/compiler/to_numba_cuda.py puts the statements of one rule. Names in capitals are constants of
the program; `load_word(address, k)` and its like are bound by gpuopt/backends/numba_cuda.py. Addresses and counts are int64.
"""

HOLE("constants")

HOLE("function")


def walk(table, tiles, tile_count, tile_size, unit, device_rows, skip, values, slots, rows):
    if skip != 0 and load_flag(skip, 0) != 0:
        return
    lane = cuda.threadIdx.x % unit
    per_block = cuda.blockDim.x // unit
    units = cuda.gridDim.x * per_block
    tile = cuda.blockIdx.x * per_block + cuda.threadIdx.x // unit
    while tile < tile_count:
        word = load_word(tiles, tile)
        index = word & 0xFFFFFFFF
        record = table + (word >> 32) * (COL_ADDRESS + ADDRESSES) * 8
        numel = load_word(record, COL_NUMEL)
        head = load_word(record, COL_HEAD)
        first = head + index * tile_size
        count = min(first + tile_size, numel) - first  # negative where numel < head
        shape = record + (COL_ADDRESS + ADDRESSES) * 8  # the end of the record
        at = record + COL_ADDRESS * 8  # read anew for every access: from L1, where registers are scarcer
        entry = load_word(record, COL_ROW) * SCALARS
        if device_rows == 0:  # the one row comes by value
            HOLE("scalars_by_value")
        else:
            HOLE("scalars_by_address")
        value = (word >> 32) * VALUES
        HOLE("values")
        if index == 0 and lane == 0:
            HOLE("store_cells")
        if STREAMS > 0:  # what the random numbers of the tensor depend on
            tensor = load_word(record, COL_TENSOR)
            seed = load_word(record, COL_SEED)
            HOLE("step")
        # Packs where every role is 16-byte aligned behind the head; one by one the head, the tail, and what is not aligned.
        body = count // LANES * LANES if count > 0 and load_word(record, COL_ALIGNED) & 1 else 0
        i = lane * LANES
        while i < body:
            element = first + i
            HOLE("update_packs")
            i += unit * LANES
        if index == 0 and lane < head and lane < numel:
            element = lane
            HOLE("update_one")
        i = body + lane
        while i < count:
            element = first + i
            HOLE("update_one")
            i += unit
        tile += units
