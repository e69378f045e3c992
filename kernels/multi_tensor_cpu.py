"""The walk for Numba on a CPU: what multi_tensor.cuh is for a GPU, one thread on the tiles from `lo` to `hi`.

A line HOLE("name") is where gpuopt/compiler/to_numba.py puts the statements of one rule. Names in capitals are constants of the
program; `load_word(address, k)` and its like are bound by gpuopt/compiler/numba_cpu.py. Every argument is int64.
"""

HOLE("constants")


def walk(table, tiles, lo, hi, tile_size, rows, values, slots):
    if STREAMS > 0:
        scratch = np.empty(STREAMS * ROOM, np.uint32)  # random bits of what lies together
        bits = scratch.ctypes.data
    for tile in range(lo, hi):
        word = load_word(tiles, tile)
        index = word & 0xFFFFFFFF
        record = table + (word >> 32) * (COL_ADDRESS + ADDRESSES) * 8
        shape = record + (COL_ADDRESS + ADDRESSES) * 8  # the end of the record
        numel = load_word(record, COL_NUMEL)
        head = load_word(record, COL_HEAD)
        first = head + index * tile_size
        end = min(first + tile_size, numel)
        begin = first if index > 0 else 0
        entry = load_word(record, COL_ROW) * SCALARS
        HOLE("scalars")
        value = (word >> 32) * VALUES
        HOLE("values")
        if index == 0:
            HOLE("store_cells")
        HOLE("addresses")
        # Hardware fetches ahead within a page only: the walk asks for the first lines of the next tensor while it updates this
        # one. It saves a tenth of the time of 1,000 tensors of 1,000 elements from memory; asking for more costs as much where
        # all is cached.
        other = table + (load_word(tiles, min(tile + 1, hi - 1)) >> 32) * (COL_ADDRESS + ADDRESSES) * 8
        for role in range(ROLES):
            prefetch(load_word(other, COL_ADDRESS + role))
        # All at once, or in strips; a strip at once, or row by row where numbers of rows and columns are used, or only some rows
        # are walked. Of what lies together, first the random bits, then the elements.
        for strip in range(0, end - begin, STRIP):
            start = strip
            limit = min(strip + STRIP, end - begin)
            while start < limit:
                stop = limit
                element = begin + start
                HOLE("row")
                if STREAMS > 0:
                    tensor = load_word(record, COL_TENSOR)
                    seed = load_word(record, COL_SEED)
                    HOLE("step")
                    HOLE("drawn")
                    block = drawn // PER_CALL
                    ahead = drawn - block * PER_CALL - start  # from i to where its bits are
                    for k in range((ahead + stop + PER_CALL - 1) // PER_CALL):
                        for stream in range(STREAMS):
                            a, b, c, d = philox(block + k, stream, step, tensor, seed)
                            store_words(bits, stream * ROOM + k * PER_BLOCK, a)
                            store_words(bits, stream * ROOM + k * PER_BLOCK + 1, b)
                            store_words(bits, stream * ROOM + k * PER_BLOCK + 2, c)
                            store_words(bits, stream * ROOM + k * PER_BLOCK + 3, d)
                for i in range(start, stop):
                    HOLE("load")
                    HOLE("update")
                    HOLE("store")
                start = stop
    if STREAMS > 0:
        scratch[0] = 0  # in use until here: Numba frees an array behind its last use, whoever has its address
