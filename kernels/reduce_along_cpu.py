"""Sums along the rows and columns of every matrix for Numba on a CPU: the blocks from `lo` to `hi`, in the order of
reduce_along.cuh.

Lanes and warps are here the entries of arrays. A line HOLE("name") is where gpuopt/compiler/to_numba.py puts the statements of one
pass. Names in capitals are constants; `load_word` and its like are bound by gpuopt/compiler/numba_cpu.py.
"""

HOLE("constants")


def reduce_along(table, columns, blocks, lo, hi, rows, values, slots):
    across = np.empty((ROW_SUMS + 1, WARP * N), C)
    down = np.empty((COLUMN_SUMS + 1, WARPS, BLOCK_COLUMNS), C)
    for block in range(lo, hi):
        word = load_word(blocks, block)
        record = table + (word >> 32) * columns * 8
        shape = record + columns * 8  # the end of the record
        height = load_word(shape, OF_ROWS)
        width = load_word(shape, OF_COLUMNS)
        wide = (width + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS  # blocks of a row
        high = (height + BLOCK_ROWS - 1) // BLOCK_ROWS
        index = word & 0xFFFFFFFF
        matrix = index // (wide * high)
        first_row = index // wide % high * BLOCK_ROWS
        first_column = index % wide * BLOCK_COLUMNS
        row_count = min(BLOCK_ROWS, height - first_row)
        column_count = min(BLOCK_COLUMNS, width - first_column)
        entry = load_word(record, COL_ROW) * SCALARS
        HOLE("scalars")
        value = (word >> 32) * VALUES
        HOLE("values")
        down[:, :, :] = C(0)
        for r in range(row_count):
            row = matrix * height + first_row + r
            first = row * width + first_column
            column = matrix * width + first_column
            HOLE("addresses")
            HOLE("vectors_of_row")
            across[:, :] = C(0)
            warp = r % WARPS
            for begin in range(0, column_count, WARP * N):
                for lane in range(min(WARP * N, column_count - begin)):
                    i = begin + lane
                    HOLE("measure")
            for lane in range(WARP):
                for k in range(1, N):
                    HOLE("join_pack")
                HOLE("take_lane")
            for lane in range(1, WARP):
                HOLE("join_row")
            HOLE("store_row")
        for i in range(column_count):
            for warp in range(1, WARPS):
                HOLE("join_column")
            HOLE("store_column")
