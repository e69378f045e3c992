"""The walk over blocks for Numba on a CPU: what blocks.cuh is for a GPU, one thread on the tiles from `lo` to `hi`.

What a warp keeps in registers until the extremes of its blocks are known is here in a scratch memory of GROUP elements.
A line HOLE("name") is where gpuopt/compiler/to_numba_blocks.py puts the statements of one rule. Names in capitals are constants of
the program; `load_word(address, k)` and its like are bound by gpuopt/compiler/numba_cpu.py. Every argument is int64.
"""

HOLE("constants")


def walk(table, tiles, lo, hi, tile_size, rows, values, slots):
    scratch = np.empty(SCRATCH, np.uint32)  # random bits, what is kept, what goes to extremes, codes of four bits
    bits = scratch.ctypes.data
    kept = bits + STREAMS * ROOM * 4
    terms = kept + KEPT * GROUP * 4
    nibbles = terms + EXTREMES * GROUP * 4
    for tile in range(lo, hi):
        word = load_word(tiles, tile)
        index = word & 0xFFFFFFFF
        record = table + (word >> 32) * (COL_ADDRESS + ADDRESSES) * 8
        shape = record + (COL_ADDRESS + ADDRESSES) * 8  # the end of the record
        numel = load_word(record, COL_NUMEL)
        block_width = load_word(record, COL_WIDTH)
        block_wide = (block_width + GROUP - 1) // GROUP
        entry = load_word(record, COL_ROW) * SCALARS
        HOLE("scalars")
        value = (word >> 32) * VALUES
        HOLE("values")
        if index == 0:
            HOLE("store_cells")
        if STREAMS > 0:
            tensor = load_word(record, COL_TENSOR)
            seed = load_word(record, COL_SEED)
            HOLE("step")
        for group in range(index * tile_size, min((index + 1) * tile_size, numel // block_width * block_wide)):
            block_row = group // block_wide
            first = (group - block_row * block_wide) * GROUP  # column
            counted = block_row * block_width + first
            HOLE("pick")
            begin = block_row * block_width + first
            length = min(GROUP, block_width - first)
            HOLE("addresses")
            HOLE("drawn")
            ahead = drawn % PER_CALL if together else 0  # from an element to where its bits are
            if STREAMS > 0 and together:
                for k in range((ahead + length + PER_CALL - 1) // PER_CALL):
                    for stream in range(STREAMS):
                        a, b, c, d = philox(drawn // PER_CALL + k, stream, step, tensor, seed)
                        store_words(bits, stream * ROOM + k * PER_BLOCK, a)
                        store_words(bits, stream * ROOM + k * PER_BLOCK + 1, b)
                        store_words(bits, stream * ROOM + k * PER_BLOCK + 2, c)
                        store_words(bits, stream * ROOM + k * PER_BLOCK + 3, d)
            elif STREAMS > 0:
                for k in range(length):
                    HOLE("drawn_alone")
                    for stream in range(STREAMS):
                        made = philox_parts(drawn // PER_CALL, stream, step, tensor, seed)
                        store_bits(bits, stream * ROOM + k, chosen(made, drawn % PER_CALL))
            HOLE("unpack")
            for part in range(0, length, PART):  # one number of every array of blocks
                end = min(part + PART, length)
                HOLE("load_blocks")
                HOLE("begin_extremes")
                start = part
                while start < end:
                    stop = end
                    HOLE("row")
                    for i in range(start, stop):
                        HOLE("load")
                        HOLE("update")
                        HOLE("store")
                    start = stop
                HOLE("keep_extremes")
            HOLE("extremes")
            for part in range(0, length, PART):
                end = min(part + PART, length)
                HOLE("take_extremes")
                for i in range(part, end):
                    HOLE("encode")
                HOLE("store_blocks")
            HOLE("pack")
    scratch[0] = 0  # in use until here: Numba frees an array behind its last use, whoever has its address
