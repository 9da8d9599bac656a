"""Shared by all tests: one thread, so that results do not hang on the machine's load."""

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))  # tests import tests/zoo.py
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton, where there is some, is imported
