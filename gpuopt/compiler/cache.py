"""The disk cache of compiled kernels: one directory that only its owner can write, verified on every read, no pickle.

Used by `nvrtc`, `numba_cpu` and `numba_gpu`. `GPUOPT_CACHE=0` turns it off, `GPUOPT_CACHE_DIR` moves it. A cache that cannot be
used (read-only, full, owned by someone else, writable by others) is not an error: kernels are then compiled again in each process.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import warnings
from pathlib import Path

_warned: set[str] = set()


def directory() -> Path | None:
    """The cache directory, made with mode 0700 if absent; None where caching is off or the directory is not safe."""
    if os.environ.get("GPUOPT_CACHE") == "0":
        return None
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(os.environ.get("GPUOPT_CACHE_DIR") or f"{base}/gpuopt").expanduser()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except (OSError, RuntimeError) as error:
        _refuse(path, str(error))
        return None
    why = None
    if not stat.S_ISDIR(status.st_mode):
        why = "it is not a directory"
    elif hasattr(os, "getuid") and status.st_uid != os.getuid():
        why = "it belongs to another user"
    elif status.st_mode & 0o077:
        why = f"its mode is {stat.S_IMODE(status.st_mode):o}, expected 700: others could plant code in it"
    if why:
        _refuse(path, why)
    return None if why else path


def _refuse(path: Path, why: str) -> None:
    if str(path) not in _warned:
        _warned.add(str(path))
        warnings.warn(f"gpuopt does not cache kernels in {path}: {why}", RuntimeWarning, stacklevel=2)


def key(*parts: str) -> str:
    """The sha256 of all parts, each with its length, so that no two lists of parts collide."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def read(name: str, kind: str = "cubin") -> bytes | None:
    """A cached entry whose digest is right, else None."""
    folder = directory()
    if folder is None:
        return None
    try:
        data = (folder / f"{name}.{kind}").read_bytes()
    except OSError:
        return None
    digest, payload = data[:32], data[32:]
    return payload if payload and hashlib.sha256(payload).digest() == digest else None


def write(name: str, payload: bytes, kind: str = "cubin") -> None:
    """Store an entry: written to a temporary file, flushed to disk, renamed; readers see all of it or nothing."""
    folder = directory()
    if folder is None:
        return
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".writing-")
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(payload).digest() + payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / f"{name}.{kind}")
    except OSError as error:
        _refuse(folder, str(error))
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
