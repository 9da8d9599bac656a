"""Several processes that train one flow: who they are, what each takes of a batch, and what they add up.

Every process holds the whole flow. Of each batch process r takes the r-th contiguous piece; gradients are added up
over processes in one message a step, weighted by rows, so that a step is that of one process with the whole batch.
Losses are those of all rows; one process writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fluvial.errors import FluvialError, RunError

#: How long a process waits for the others before it gives up.
TIMEOUT = timedelta(minutes=10)


class LostProcess(FluvialError):
    """Another process of this fit has died or hangs; what it trained is in the last checkpoint."""


@dataclass(frozen=True)
class Group:
    """The processes of a fit, seen from one: number ``rank`` of ``size``. By default there is one alone."""

    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def piece(self, rows: int) -> slice:
        """Return the contiguous piece of so many rows that is this process's; those of all cover every row once.

        >>> [Group(r, 3).piece(10) for r in range(3)]
        [slice(0, 4, None), slice(4, 7, None), slice(7, 10, None)]
        """
        least, more = divmod(rows, self.size)
        start = self.rank * least + min(self.rank, more)
        return slice(start, start + least + (self.rank < more))

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over processes, the same bits in each.

        Raises
        ------
        LostProcess
            If another process is gone, or does not answer in time.
        """
        if self.size == 1:
            return values
        values = values.clone()
        try:
            dist.all_reduce(values)
        except RuntimeError as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise LostProcess(
                f"Process {self.rank + 1} of {self.size}: another process of this fit is gone or does not answer "
                f"({first:.200}). Look for its own message, then go on from the last checkpoint with --resume."
            ) from error
        return values

    def total_gradients(self, parameters: Iterable[nn.Parameter], share: float, facts: Tensor) -> Tensor:
        """Add up gradients over processes, in place, and return the sums of some further numbers, ``facts: [k]``.

        Gradients count by ``share``, this process's part of the rows; a lone process keeps its own. One message for
        all: for flows of up to some millions of weights its latency is what counts.
        """
        if self.size == 1:
            return facts
        parameters = list(parameters)
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.total(torch.cat([*(share * g.flatten() for g in gradients), facts.to(gradients[0])]))
        *parts, facts = flat.split([*(g.numel() for g in gradients), len(facts)])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return facts

    def share(self, module: nn.Module) -> None:
        """Give every process the weights and buffers of the first."""
        if self.size == 1:
            return
        with torch.no_grad():
            for tensor in module.state_dict().values():
                mine = tensor if self.rank == 0 else torch.zeros_like(tensor)
                tensor.copy_(self.total(mine))


@contextmanager
def process_group(environ: Mapping[str, str] | None = None) -> Iterator[Group]:
    """Join the processes that ``torchrun`` or ``srun`` started beside this one; alone, join nobody.

    Tensors on the CPU travel by gloo, those on a GPU by NCCL.

    Raises
    ------
    RunError
        If the others do not come, or the environment does not say where they are.
    """
    rank, size, where = rendezvous(os.environ if environ is None else environ)
    if size == 1:
        yield Group()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, init_method=where, rank=rank, world_size=size, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"Process {rank + 1} of {size} could not join the others at {where}: {error}"
        ) from error
    try:
        yield Group(rank, size)
    finally:
        dist.destroy_process_group()


def rendezvous(environ: Mapping[str, str]) -> tuple[int, int, str]:
    """Return this process's number, how many there are, and where they meet, as torchrun or srun says.

    >>> rendezvous({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "29500"})
    (1, 2, 'tcp://a:29500')
    >>> step = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_ID": "71234"}
    >>> rendezvous(step | {"SLURM_STEP_NODELIST": "n[012-015]"})
    (3, 4, 'tcp://n012:21234')
    >>> rendezvous({})[:2]
    (0, 1)
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        rank, size = int(environ["RANK"]), int(environ["WORLD_SIZE"])
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if size > 1 and name not in environ]
        if missing:
            raise RunError(
                f"RANK and WORLD_SIZE say that {size} processes train together, but {' and '.join(missing)} is not set; "
                "start them with torchrun or srun."
            )
        return rank, size, f"tcp://{environ.get('MASTER_ADDR', '')}:{environ.get('MASTER_PORT', '')}"
    # Set by srun for its tasks alone. SLURM_NTASKS is also set in a batch script, which is one process.
    size = int(environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if size == 1:
        return 0, 1, ""
    host = environ.get("MASTER_ADDR") or _first_host(environ.get("SLURM_STEP_NODELIST", "localhost"))
    port = environ.get("MASTER_PORT") or str(20_000 + int(environ.get("SLURM_JOB_ID", "0")) % 10_000)
    return int(environ["SLURM_PROCID"]), size, f"tcp://{host}:{port}"


def _first_host(nodes: str) -> str:
    """Return the first host of a SLURM list.

    >>> _first_host("gpu[03-05,9]"), _first_host("a1,a2"), _first_host("login")
    ('gpu03', 'a1', 'login')
    """
    head, bracket, rest = nodes.partition("[")
    if not bracket or "," in head:
        return nodes.partition(",")[0]
    first = rest.partition("]")[0].replace("-", ",").partition(",")[0]
    return head + first + rest.partition("]")[2].partition(",")[0]
