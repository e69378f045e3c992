"""The walk over blocks for Numba CUDA: the twin of blocks.cuh, which tells of groups, lanes and extremes.

A line HOLE("name") is where gpuopt/compiler/to_numba_cuda_blocks.py puts the statements of one rule; `m_3` is what the fourth of
the EACH elements of a lane has. Names in capitals are constants of the program; `load_word(address, k)` and its like are bound by
gpuopt/backends/numba_cuda.py. Addresses and counts are int64.
"""

HOLE("constants")

HOLE("functions")


def walk(table, tiles, tile_count, tile_size, unit, device_rows, skip, values, slots, rows):
    if skip != 0 and load_flag(skip, 0) != 0:
        return
    lane = cuda.threadIdx.x % WARP
    warp = cuda.threadIdx.x // WARP
    # All warps of a block make as many turns, for they exchange numbers together.
    begin = cuda.blockIdx.x * WARPS
    while begin < tile_count:
        inside = begin + warp < tile_count
        word = load_word(tiles, begin + warp if inside else begin)
        record = table + (word >> 32) * (COL_ADDRESS + ADDRESSES) * 8
        shape = record + (COL_ADDRESS + ADDRESSES) * 8  # the end of the record
        at = record + COL_ADDRESS * 8
        block_width = load_word(record, COL_WIDTH)
        block_wide = (block_width + GROUP - 1) // GROUP
        first = (word & 0xFFFFFFFF) * tile_size
        groups = quotient(load_word(record, COL_NUMEL), block_width) * block_wide
        aligned = load_word(record, COL_ALIGNED) & 1 != 0
        entry = load_word(record, COL_ROW) * SCALARS
        if device_rows == 0:  # the one row comes by value
            HOLE("scalars_by_value")
        else:
            HOLE("scalars_by_address")
        value = (word >> 32) * VALUES
        HOLE("values")
        if inside and first == 0 and lane == 0:
            HOLE("store_cells")
        if STREAMS > 0:  # what the random numbers of the tensor depend on
            tensor = load_word(record, COL_TENSOR)
            seed = load_word(record, COL_SEED)
            HOLE("step")
        block_row = quotient(first, block_wide)
        beginning = (first - block_row * block_wide) * GROUP
        for group in range(first, first + tile_size):
            column = beginning + lane * EACH
            left = block_width - column if inside and group < groups else 0
            count = min(max(left, 0), EACH)
            whole = aligned and count == EACH
            row = block_row
            element = row * block_width + column
            if count > 0:
                HOLE("pick")
            HOLE("begin")
            if count > 0:
                HOLE("load_blocks")
                if whole:
                    HOLE("load_packs")
                else:
                    HOLE("load_single")
                HOLE("update")
                if whole:
                    HOLE("store_packs")
                else:
                    HOLE("store_single")
            HOLE("join_lanes")
            meet()  # no lane writes what a block has together before all others have read it
            if count > 0:
                HOLE("encode")
                if whole:
                    HOLE("store_code_packs")
                else:
                    HOLE("store_single_codes")
                HOLE("store_blocks")
            beginning += GROUP
            if beginning >= block_width:
                beginning = 0
                block_row += 1
        begin += cuda.gridDim.x * WARPS
