"""Where training runs: on the CPU, or on an NVIDIA GPU."""

from __future__ import annotations

import torch

from fluvial.errors import RunError


def training_device(name: str, rank: int = 0) -> torch.device:
    """Return where process number ``rank`` of a group trains: ``cpu``, or of the machine's GPUs each process another.

    Raises
    ------
    RunError
        If a GPU is asked for and there is none.

    >>> training_device("cpu")
    device(type='cpu')
    """
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = (
            "is for the CPU alone" if torch.version.cuda is None else "sees none (nvidia-smi may tell more)"
        )
        raise RunError(
            f'[training] device = "cuda": expected an NVIDIA GPU; the installed PyTorch {torch.__version__} {built}. '
            'Install PyTorch for CUDA, or set device = "cpu".'
        )
    device = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(device)  # what the processes send one another goes from there
    return device
