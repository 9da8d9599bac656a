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
    compiler = shlex.split(os.environ.get("CC") or "cc")
    with tempfile.TemporaryDirectory() as scratch:
        objects = []
        for name, flags in instruction_sets().items():
            objects.append(f"{scratch}/{name}.o")
            names = [f"-DFORWARD=spline_forward_{name}", f"-DBACKWARD=spline_backward_{name}"]
            source = str(folder / "spline_kernel.c")
            _run([*compiler, *FLAGS, *flags, *names, "-c", source, "-o", objects[-1]])
        made = f"{scratch}/{LIBRARY}"
        link = [*compiler, *FLAGS, "-shared", str(folder / "spline.c"), str(folder / "gather.c"), *objects, "-o", made]
        link += ["-DHAVE_AVX2"] if "avx2" in instruction_sets() else []
        try:
            _run([*link, "-fopenmp"])
        except subprocess.CalledProcessError:  # Apple's compiler has no OpenMP: one thread then
            _run(link)
        part = library.with_suffix(f".{os.getpid()}")
        part.write_bytes(Path(made).read_bytes())
        part.replace(library)


def instruction_sets() -> dict[str, list[str]]:
    """Return the name of every copy of the kernels with its compiler flags."""
    x86 = platform.machine().lower() in ("x86_64", "amd64") and sys.platform != "win32"
    return {"any": []} | ({"avx2": ["-mavx2", "-mfma"]} if x86 else {})


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
