"""Compiles the kernels in C, if there is a compiler; without one fluvial works all the same, only slower."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("src/fluvial/core/kernels")
LIBRARY = "kernels.so"
#: Compiled once, and once for every instruction set.
SOURCES, KERNELS = ("spline.c", "mlp.c", "gather.c"), ("spline_kernel.c", "mlp_kernel.c")
# No -ffast-math: a value that is not a number must come out as one.
FLAGS = [
    "-O3",
    "-std=gnu11",
    "-fPIC",
    "-fvisibility=default",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
]


class KernelsHook(BuildHookInterface):
    """Adds the compiled kernels to a wheel, or leaves them in the sources of an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, or say in one line why not."""
        if self.target_name != "wheel":
            return
        folder = Path(self.root) / FOLDER
        library = folder / LIBRARY
        try:
            compile_kernels(folder, library)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "") or error
            self.app.display_warning(f"fluvial: no kernels in C, PyTorch's operations serve instead: {said}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["artifacts"].append(str(FOLDER / LIBRARY))


def compile_kernels(folder: Path, library: Path) -> None:
    """Compile and link the kernels; the library is replaced at once or not at all."""
    compiler = [*shlex.split(os.environ.get("CC") or "cc"), *FLAGS]
    with tempfile.TemporaryDirectory() as scratch:
        objects, have = [], []
        for name, flags in instruction_sets().items():
            made = []
            try:
                for source in KERNELS:
                    made.append(f"{scratch}/{Path(source).stem}_{name}.o")
                    _run([*compiler, *flags, f"-DSET={name}", "-c", str(folder / source), "-o", made[-1]])
            except subprocess.CalledProcessError:
                if name == "any":
                    raise
                continue  # a compiler that does not know this set: the others serve
            objects += made
            have.append(f"-DHAVE_{name}")
        made = f"{scratch}/{LIBRARY}"
        link = [
            *compiler,
            "-shared",
            *have,
            *(str(folder / source) for source in SOURCES),
            *objects,
            "-o",
            made,
        ]
        try:
            _run([*link, "-fopenmp"])
        except subprocess.CalledProcessError:  # Apple's compiler has no OpenMP: one thread then
            _run(link)
        part = library.with_suffix(f".{os.getpid()}")
        part.write_bytes(Path(made).read_bytes())
        part.replace(library)


def instruction_sets() -> dict[str, list[str]]:
    """Return the name of every copy of the kernels with its compiler flags."""
    if platform.machine().lower() not in ("x86_64", "amd64") or sys.platform == "win32":
        return {"any": []}
    avx2 = ["-mavx2", "-mfma"]
    avx512 = [*avx2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
    return {"any": [], "avx2": avx2, "avx512": avx512, "avx512bf16": [*avx512, "-mavx512bf16"]}


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
