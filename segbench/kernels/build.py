"""Compile the kernels of this folder with the machine's C compiler: `python -m segbench.kernels`.

One small library with a plain C interface, called through ctypes: it knows nothing of Python's version and needs none
of its headers. Every kernel is in it once per target (AVX-512, AVX2, baseline) and the machine picks at run time, so
that a wheel travels. Installing does this by itself where there is a compiler (hatch_build.py, which loads this file by
its path: the standard library only).
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
LIBRARY = HERE / "libsegbench.so"
KERNELS = ("evaluation.c", "loss.c", "plan.c")  # compiled once per target
ONCE = "targets.c"
TARGETS = {  # best first; the flags of x86-64, elsewhere the baseline is all there is
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
    "avx2": ("-mavx2", "-mfma"),
    "baseline": (),
}
# Nothing is reordered. Infinities and NaN are refused before the kernels compute, by their bits.
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast")
FLAGS += ("-ffinite-math-only", "-fno-signed-zeros", "-fno-trapping-math")


class BuildError(Exception):
    """No library could be made; the message says why, and what the compiler said."""


def digest() -> str:
    """sha256 over the C sources beside this file; a library made from others is not used."""
    total = hashlib.sha256()
    for path in sorted([*HERE.glob("*.c"), *HERE.glob("*.h")]):
        total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def build(library: Path = LIBRARY, compiler: str | None = None) -> str:
    """Write the library and name the compiler that made it; BuildError leaves whatever library was there before."""
    command = _compiler(compiler)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".compile-") as scratch:
        objects = []
        for source, name, flags in _units():
            objects.append(os.fspath(Path(scratch) / f"{name}.o"))
            _run([*command, *FLAGS, *flags, "-c", os.fspath(HERE / source), "-o", objects[-1]])
        made = Path(scratch) / library.name
        _run([*command, "-shared", *objects, "-o", os.fspath(made)])
        made.replace(library)  # whole or not at all
    return " ".join(command)


def _units() -> list[tuple[str, str, tuple[str, ...]]]:
    """Source, name of the object file and flags of everything that is compiled."""
    targets = TARGETS if platform.machine().lower() in ("x86_64", "amd64") else {"baseline": ()}
    units = [
        (source, f"{Path(source).stem}_{target}", (*flags, f"-DTARGET={target}"))
        for source in KERNELS
        for target, flags in targets.items()
    ]
    return [*units, (ONCE, Path(ONCE).stem, (f'-DSOURCES="{digest()}"',))]


def _compiler(wish: str | None) -> list[str]:
    candidates = [wish] if wish else [sysconfig.get_config_var("CC"), "cc", "gcc", "clang"]
    for candidate in candidates:
        command = shlex.split(candidate or "")
        if command and shutil.which(command[0]):
            return command
    raise BuildError(f"no C compiler: {wish or 'cc, gcc and clang are'} not found; install gcc or clang")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 our own words, no shell
    if done.returncode:
        raise BuildError(f"{shlex.join(command)} failed:\n{done.stderr.strip()[-2000:]}")
