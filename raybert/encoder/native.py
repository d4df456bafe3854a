"""Attention for bfloat16 on a CPU in C: built by the machine's own compiler at first use, kept in the user's cache."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("attention.c")
_FLAGS = ("-O3", "-march=native", "-std=c11", "-fPIC", "-shared", "-fopenmp")
_HEAD_SIZES = (32, 64, 96, 128)


def attend_native(
    qkv: Tensor, offsets: np.ndarray, *, bias: Tensor | None = None, window: int | None = None
) -> Tensor:
    """`attention.attend` of a contiguous bfloat16 `qkv` [tokens, 3, heads, d]; `offsets` int64 as in `Rows`."""
    tokens, _, heads, d = qkv.shape
    # what C takes on trust
    for tensor in (qkv, *(() if bias is None else (bias,))):
        assert tensor.is_contiguous()
        assert tensor.dtype == torch.bfloat16
    assert offsets.dtype == np.int64
    assert offsets[-1] <= tokens
    assert bias is None or bias.shape[-1] >= np.diff(offsets).max(initial=0)
    out = qkv.new_empty(tokens, heads * d)
    out[int(offsets[-1]) :] = 0
    library = _library()
    assert not isinstance(library, str), library
    failed = library.raybert_attend(
        *(qkv.data_ptr(), out.data_ptr(), offsets.ctypes.data, len(offsets) - 1, heads, d),
        *((None, 0) if bias is None else (bias.data_ptr(), bias.shape[-1])),
        *(-1 if window is None else window, torch.get_num_threads()),
    )
    if failed:
        raise MemoryError("no memory for the scores of a batch")
    return out


def why_not(like: Tensor, head_size: int) -> str:
    """Why the kernel cannot serve a model with weights like this one; "" if it can."""
    if like.device.type != "cpu" or like.dtype != torch.bfloat16:
        return "it is for bfloat16 on a CPU"
    if head_size not in _HEAD_SIZES:
        return f"its heads have {head_size} numbers, not {', '.join(map(str, _HEAD_SIZES))}"
    found = _library()
    return found if isinstance(found, str) else ""


@cache
def _library() -> ctypes.CDLL | str:
    """The built kernel, or why there is none."""
    flags = _cpu_flags()
    if "avx512_bf16" not in flags.split():
        return "this CPU has no AVX-512 BF16"
    name = hashlib.sha256(_SOURCE.read_bytes() + " ".join(_FLAGS).encode() + flags.encode()).hexdigest()[:20]
    kept = _cache_folder() / f"attention-{name}.so"
    try:
        library = ctypes.CDLL(str(kept)) if kept.is_file() else _build(kept)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return f"attention.c does not build: {said.strip().splitlines()[-1][:200]}"
    if library is None:
        return "there is no C compiler (cc, gcc or clang)"
    library.raybert_attend.argtypes = [
        *[ctypes.c_void_p] * 3,
        *[ctypes.c_int64] * 3,
        *[ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int],
    ]
    return library


def _build(kept: Path) -> ctypes.CDLL | None:
    """Compile, load, and keep for other processes where that can be done. None without a compiler."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "attention.so")
        command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(made), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        library = ctypes.CDLL(str(made))
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            aside = kept.with_name(f"{kept.name}.{os.getpid()}")
            shutil.copyfile(made, aside)
            os.replace(aside, kept)  # another process sees all of it or nothing
        except OSError:
            pass  # a cache that cannot be written costs a second in the next process, nothing more
    return library


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "raybert")


def _cpu_flags() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith("flags")), "")
