"""Everything that reads the memory of CPython, NumPy or torch behind their interfaces, or calls C++ functions of torch.

It saves time only. Each part has a plain twin that asks Python, NumPy or torch instead and gives the same answers. The twin takes
its place where `GPUOPT_NATIVE=0` is set, where a version is not in the table of `switch`, and where the part's own test fails.
That is decided here, once: callers call one function and cannot tell which it is. `gpuopt info` says so for this machine.

objects    CPython: `id` is an address, where lists and tuples keep their items, what reference counts mean. When it is imported
           it reads lists and tuples made for it and counts references that it made. Twin: each object is asked, and every entry
           of a state is taken to be in others' hands.
ndarrays   NumPy: the address of the data is the first field of an array object, the flags follow six words later. When it is
           imported it compares three arrays with `__array_interface__` and `flags`, which are also the twin.
torch      names and signatures of three C++ functions; a C++ reference to a tensor is the address of the word that holds the
           address of its TensorImpl, as torch's stable C functions take it. `library` looks the names
           up, reads the signatures in torch's own headers, and looks for that word with `_cdata` wherever it is used. Before its
           first use, `watch` compares all that it says of tensors made for it with what Python says, `counters` what it does to
           version counters. Twins: `gpuopt.torch.snapshot`, `torch.autograd.graph.increment_version`, and that every step is
           recorded for profilers.

`memory` is here too, although it knows no object's layout and is always in use: arrays over host memory of data by its address,
whose owner the caller keeps alive.

`torch` is used by `gpuopt.torch` only; the rest imports NumPy alone, and everything may use it. To take in a new version, add it to
the table in `switch` and run the suite, then once more with `GPUOPT_NATIVE=0`.
"""
