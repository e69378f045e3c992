"""The layout of the launch table, shared by everything that writes or reads it: plan, emitters, backends.

One record of int64 per tensor: the columns below, then one address per role. One int64 per tile: tensor index in the
upper 32 bits, tile index within the tensor in the lower 32. Everything is int64, so nothing overflows at 2**31.
"""

NUMEL = 0  # elements of the tensor
ROW = 1  # its row of scalars
HEAD = 2  # leading elements handled one by one, so that most arrays are 16-byte aligned behind them
ALIGNED = 3  # bit 0: every role is aligned for packed access behind the head; bit 1 + r: role r is at its first element
TENSOR = 4  # its number in the optimizer, which its random numbers depend on
SEED = 5  # and theirs, 64 bits
OWNER = 6  # whether it stores the numbers that all tensors share
WIDTH = 7  # elements of a row, where states are kept in blocks, of which a row begins a new one, or only some rows are stepped
WHOLE = 8  # elements of the tensor of which this is a part, where other processes have the others
ADDRESS = 9  # first of the addresses, in the order of the roles, those of the states of one number behind them

COLUMNS = {
    "NUMEL": NUMEL,
    "ROW": ROW,
    "HEAD": HEAD,
    "ALIGNED": ALIGNED,
    "TENSOR": TENSOR,
    "SEED": SEED,
    "OWNER": OWNER,
    "WIDTH": WIDTH,
    "WHOLE": WHOLE,
    "ADDRESS": ADDRESS,
}

CHUNK = 8192  # elements whose sums form one partial: fixed, so that a norm has the same bits on every device
THREADS = 256  # accumulators of a chunk, and threads of a block

# Behind the addresses, where the tensors have rows and columns: their numbers, and where those of the tensor begin among all rows,
# columns, matrices, and sums of blocks.
MATRIX = ("ROWS", "COLUMNS", "FIRST_ROW", "FIRST_COLUMN", "FIRST_MATRIX", "ROW_BLOCKS", "COLUMN_BLOCKS")
# And where only some rows are stepped: where their numbers lie, how many rows there are, and whether the gradient has those only.
PICKED = ("INDICES", "HEIGHT", "COMPACT")
# And where it is a part of a tensor: see kernels/shards.cuh.
SHARD = ("FIRST", "RUN", "SKIP")
BLOCK_ROWS, BLOCK_COLUMNS = 64, 512  # of a matrix, whose sums along rows and columns form one partial each
SHARED_BYTES = 48 * 1024  # that a block of threads may declare
WARP = 32  # lanes, each of which adds up packs of every row of a block that its warp takes

# As the kernels name them, in CUDA C and in Python.
CONSTANTS = {f"COL_{name}": value for name, value in COLUMNS.items()} | {"CHUNK": CHUNK, "THREADS": THREADS}
CONSTANTS |= {f"OF_{name}": k - len(MATRIX) for k, name in enumerate(MATRIX)}  # from the end of a record
CONSTANTS |= {f"OF_{name}": k - len(PICKED) for k, name in enumerate(PICKED)}
CONSTANTS |= {f"OF_{name}": k - len(SHARD) for k, name in enumerate(SHARD)}
CONSTANTS |= {"BLOCK_ROWS": BLOCK_ROWS, "BLOCK_COLUMNS": BLOCK_COLUMNS, "WARP": WARP, "WARPS": THREADS // WARP}
CONSTANTS["SHARED_BYTES"] = SHARED_BYTES
EACH = 8  # elements of a row that a lane of a walk over blocks has
GROUP = WARP * EACH  # and a warp: one block of the largest kind, or several smaller ones
CONSTANTS |= {"EACH": EACH, "GROUP": GROUP}
