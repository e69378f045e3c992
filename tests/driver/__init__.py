"""A CUDA driver without a GPU: its memory is the host's, its kernels are interpreted PTX. See README.md in this folder."""
