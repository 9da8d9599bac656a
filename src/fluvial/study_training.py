"""The ``[training]`` section of a study: budget, optimiser, and what else ends training."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt

from fluvial.study_columns import Section

# The same as in fluvial.train, which is a layer above.
Precision = Literal["float32", "bf16"]
Device = Literal["cpu", "cuda"]
Schedule = Literal["cosine", "constant", "cosine-restarts", "one-cycle", "plateau"]
Metric = Literal["loss", "conditioning"]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch and numpy both take


def _read_rate(value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value == "auto" or (number and 0 < value < math.inf):
        return value
    raise ValueError(f'expected "auto" or a number greater than 0; found {value!r}')


class TrainingSection(Section):
    """The training budget, the optimiser, and what else ends training."""

    epochs: PositiveInt | None = Field(
        default=None, description="passes over the training rows; 100 if steps and minutes are left out"
    )
    steps: PositiveInt | None = Field(default=None, description="steps of the optimiser")
    minutes: PositiveFloat | None = Field(
        default=None, description="wall time; of several budgets, whichever ends first"
    )
    batch_size: PositiveInt | None = Field(
        default=None,
        description="rows in a step; left out, the power of two closest to twice the root of the training rows",
    )
    batch_growth: Literal[1, 2, 4, 8, 16, 32, 64] = Field(
        default=1,
        description="by how much batches have grown at the end, doubling at equal shares of the budget",
    )
    optimizer: Literal["adamw", "adam"] = Field(
        default="adamw",
        description="Adam with weight decay that is kept apart from the gradient (adamw), or mixed into it (adam)",
    )
    learning_rate: Annotated[float | Literal["auto"], BeforeValidator(_read_rate)] = Field(
        default="auto",
        description="at its highest; auto finds it by a sweep before training, and takes 3e-3 where the budget is too "
        "small for one",
    )
    schedule: Schedule = Field(
        default="cosine", description="how the learning rate moves over the budget; cosine falls to zero"
    )
    warmup: Fraction = Field(
        default=0.02,
        description="share of the budget in which the learning rate rises; one-cycle has its own",
    )
    cycles: PositiveInt = Field(default=4, description="of cosine-restarts")
    plateau_epochs: PositiveInt = Field(
        default=5, description="epochs without improvement after which plateau halves the learning rate"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=1e-4, description="share of each weight that a step takes off, in units of the learning rate"
    )
    clip: PositiveFloat = Field(default=5.0, description="largest norm of a gradient")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="validate and keep an exponential moving average of the weights with this decay, such as 0.999",
    )
    metric: Metric = Field(
        default="loss",
        description="what decides which weights are best: the validation loss, or how well the context is followed",
    )
    patience: PositiveInt | None = Field(
        default=None, description="epochs without a better metric before stopping"
    )
    least_gain: PositiveFloat | None = Field(
        default=None,
        description="stop when the validation loss falls by less than this, in nats a second, over the last 10 epochs",
    )
    rollbacks: Annotated[int, Field(ge=0)] = Field(
        default=3,
        description="how often to go back to sound weights, with a lower learning rate, when steps stay non-finite",
    )
    start: str | None = Field(
        default=None,
        description="a run whose weights to start from, where they fit; beside the study or in the folder of runs",
    )
    checkpoint_minutes: Annotated[float, Field(ge=0)] = Field(
        default=5.0, description="at most this much training is lost when the process is killed"
    )
    precision: Precision = Field(
        default="float32",
        description="of the products in conditioners while they train; bf16 is for a GPU, or a CPU with instructions "
        "for it; densities, draws and checks are in float32 whatever it is",
    )
    device: Device = Field(
        default="cpu",
        description="where to train: cuda is an NVIDIA GPU, which repays batches of thousands of rows; what is made of "
        "the density afterwards, draws and checks, is made on the CPU",
    )
    compile: bool = Field(
        default=False, description="compile the flow with torch.compile; the record says what it cost"
    )
    ensemble: Annotated[int, Field(ge=1, le=100)] = Field(
        default=1,
        description="so many members, whose seeds follow on `seed`, are trained in turn and saved as one density",
    )
    seed: Seed = Field(default=0, description="decides the initial weights and the order of rows")

    def batch_rows(self, rows: int) -> int:
        """Return the rows in a step, for so many training rows: noise in the steps regularises small tables.

        >>> [TrainingSection().batch_rows(n) for n in (1_000, 13_000, 60_000, 3_000_000)]
        [64, 256, 512, 4096]
        """
        return self.batch_size or min(max(2 ** round(math.log2(2 * math.sqrt(rows))), 64), 4096)

    @property
    def epoch_limit(self) -> int | None:
        """Epochs after which training ends; ``None`` where steps or minutes alone decide."""
        return self.epochs or (None if self.minutes or self.steps else 100)
