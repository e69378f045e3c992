"""What is read of torch's objects and called of its C++ functions; see `gpuopt.native`. Used by `gpuopt.torch` only."""
