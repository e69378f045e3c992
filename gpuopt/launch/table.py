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
ADDRESS = 6  # first of the addresses, in the order of the roles

COLUMNS = {
    "NUMEL": NUMEL,
    "ROW": ROW,
    "HEAD": HEAD,
    "ALIGNED": ALIGNED,
    "TENSOR": TENSOR,
    "SEED": SEED,
    "ADDRESS": ADDRESS,
}

CHUNK = 8192  # elements whose sums form one partial: fixed, so that a norm has the same bits on every device
THREADS = 256  # accumulators of a chunk, and threads of a block
