"""Compile rows.c: with the package if there is a compiler, else when it is first needed.

Imports only the standard library, so that setup.py can use it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

# One library for each kind of processor, so that C needs neither dispatch nor compiler extensions.
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c")
VARIANTS: dict[str, tuple[str, ...]] = {
    "avx512_bf16": (*_AVX512, "-mavx512bf16"),
    "avx512": _AVX512,
    "avx2": ("-mavx2", "-mfma", "-mf16c", "-mbmi2"),
    "portable": (),
}
FLAGS = ("-O2", "-std=c11", "-fPIC", "-shared", "-fopenmp")
DEADLINE_S = 300  # a loaded machine takes half a minute for a second's work

HERE = Path(__file__).parent
SOURCES = (HERE / "rows.c", HERE / "vector.h")


def file_name(variant: str) -> str:
    """Return the library's name, which changes with its sources and flags."""
    parts = [source.read_bytes() for source in SOURCES]
    parts.append(" ".join((*FLAGS, *VARIANTS[variant])).encode())
    return f"rows-{variant}-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}.so"


def find_or_build(variant: str) -> Path:
    """Return the compiled library: the package's own, a cached one, or one compiled now.

    Raises OSError with one sentence that gives the reason if there is none.
    """
    name = file_name(variant)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = Path(os.environ.get("AENT_CACHE") or f"{base}/aent").expanduser() / "kernels"
    for folder in (HERE, cache):
        if (folder / name).exists():
            return folder / name
    return build(variant, cache)


def build(variant: str, folder: Path) -> Path:
    """Compile one variant into ``folder``, where it appears when it is complete; return its path.

    Raises OSError with one sentence that gives the reason if it cannot be compiled.
    """
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", ""), "cc", "gcc"))), None)
    if compiler is None:
        raise OSError("there is no C compiler (cc, gcc or $CC)")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(variant)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made = Path(temporary) / path.name
        source = str(SOURCES[0])
        command = [compiler, *FLAGS, *VARIANTS[variant], "-o", str(made), source, "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise OSError(f"{compiler} did not compile rows.c within {DEADLINE_S} s") from None
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "error" in line] or [""]
            raise OSError(f"{compiler} cannot compile rows.c for {variant}: {said[0].strip()}")
        os.replace(made, path)  # if ranks compile at the same time, one complete file remains
    return path
