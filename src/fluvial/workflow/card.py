"""``write_card``: ``card.json`` and ``README.md`` of a run."""

from __future__ import annotations

import json
from pathlib import Path

from fluvial.density import DENSITY_FILE
from fluvial.errors import RunError
from fluvial.files import write_atomically
from fluvial.novelty import Novelty
from fluvial.record import RunFolder, now
from fluvial.report.card import CARD, README, make_card, readme


def write_card(run: str | Path | RunFolder) -> Path:
    """Write the calibration card of a run beside its density; return the path of its ``README.md``.

    Raises
    ------
    RunError
        If there is no run, or no density in it.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder.open(run)
    path = folder.path / DENSITY_FILE
    try:
        description = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}); restore it, or fit again.") from error
    novelty = Novelty.load(folder.path)
    says = None if novelty is None else novelty.describe()
    card = make_card(folder.record(), description, folder.checks(), says, now())
    folder.write_json(CARD, card)
    write_atomically(folder.path / README, readme(card).encode())
    return folder.path / README
