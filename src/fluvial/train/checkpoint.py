"""Checkpoints: all that a fit needs to go on bit for bit, in one file that cannot carry code and is never half-written.

The file is in the safetensors format: tensors by name, and in its header a JSON text with every number that is no tensor.
Random draws need no state: those of a step are a pure function of the seed and the number of the step.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from fluvial.errors import RunError
from fluvial.files import write_atomically

#: The name of the file in a run folder, and the format that this version writes.
CHECKPOINT = "checkpoint.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """Tensors under dotted names, such as ``flow.NAME``, and numbers.

    >>> import torch
    >>> c = Checkpoint(named("flow", {"w": torch.zeros(2)}), {"epoch": 3})
    >>> list(c.tensors), c.part("flow")
    (['flow.w'], {'w': tensor([0., 0.])})
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with ``prefix.``, without it."""
        start = f"{prefix}."
        return {n.removeprefix(start): t for n, t in self.tensors.items() if n.startswith(start)}

    def save(self, path: Path) -> int:
        """Write the file at once or not at all; return its size in bytes.

        Raises :class:`~fluvial.errors.RunError` if the disk is full or the folder not writable; the checkpoint before is
        left as it was.
        """
        text = json.dumps({"format": FORMAT, **self.numbers}, allow_nan=False)
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        content = safetensors_bytes(tensors, metadata={"numbers": text})
        write_atomically(path, content)
        return len(content)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint. No code is run, whoever made it.

        Raises
        ------
        RunError
            If the file is missing, damaged, or of a newer format than this version reads.
        """
        try:
            with safe_open(path, framework="pt") as file:
                numbers = json.loads((file.metadata() or {})["numbers"])
                version = numbers.pop("format")
                if version > FORMAT:
                    raise RunError(
                        f"{path} has format {version}; this version reads up to {FORMAT}. Update fluvial."
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except FileNotFoundError:
            raise RunError(f"Expected a checkpoint at {path}; found none.") from None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path} is damaged ({type(error).__name__}: {error}); restore it, or remove it and resume: the fit "
                "then begins again."
            ) from error
        return cls(tensors, numbers)


def named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under ``prefix.NAME``."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
