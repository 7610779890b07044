"""How much of the model's training compute a loss is worth.

    compute equivalent = c / c_final,   with c such that  loss(c) = loss(c_final) + CE delta

loss(c) is the model's own loss after the compute c of its training, from a file of points; between points the loss is
taken as linear in log c, and a loss never rises with compute: where points do, the lowest so far counts. Gao et al.
2024 (arXiv 2406.04093) say that their largest SAE keeps GPT-4's loss at 10 % of its compute; which law they invert is
not documented. A loss worse than that of the first point is given that point's share, as an upper bound.
"""

# Shape letters: n points.

import csv
from pathlib import Path

import torch
from torch import Tensor

from saelab.core.read import Row, read_json, text_of

FORM = "give a JSON list of [compute, loss], or a CSV with the columns compute and loss"


class Compute:
    """Loss against training compute, from a file.

    Args:
        path: a JSON list of [compute, loss] pairs, or a CSV with the columns compute and loss.

    Raises:
        ValueError: naming the file, if it is missing, is neither, or its points do not make a curve.
    """

    def __init__(self, path: str | Path):
        points = sorted(_points(Path(path)))
        compute, loss = (torch.tensor(column, dtype=torch.float64) for column in zip(*points, strict=True))
        if not (torch.isfinite(compute) & torch.isfinite(loss) & (compute > 0)).all():
            raise ValueError(f"{path}: compute must be above 0, and compute and loss must be finite")
        loss = loss.cummin(0).values
        falls = torch.ones_like(loss, dtype=torch.bool)
        falls[1:] = loss[1:] < loss[:-1]
        self.log_compute, self.loss = compute[falls].log(), loss[falls]
        if len(self.loss) < 2:
            raise ValueError(f"{path}: at least two points are needed between which the loss falls")

    def share(self, delta: Tensor) -> Tensor:
        """Share of the compute at which the loss is `delta` above that of the last point; of the same shape."""
        wanted = (self.loss[-1] + delta.double()).clamp(self.loss[-1], self.loss[0])
        # Losses fall, and a search wants rising ones.
        place = torch.searchsorted(-self.loss, (-wanted).contiguous()).clamp(1, len(self.loss) - 1)
        low, high = self.loss[place - 1], self.loss[place]
        along = (low - wanted) / (low - high)
        log = torch.lerp(self.log_compute[place - 1], self.log_compute[place], along)
        return (log - self.log_compute[-1]).exp()

    def is_beyond(self, delta: float) -> bool:
        """Whether the loss is worse than that of the first point."""
        return float(self.loss[-1]) + delta > float(self.loss[0])


def _points(path: Path) -> list[tuple[float, float]]:
    if path.suffix == ".json":
        found = [(compute, loss) for compute, loss in read_json(path, [Row(float, float)], remedy=FORM)]
    else:
        try:
            lines = csv.DictReader(text_of(path, FORM).splitlines())
            found = [(float(line["compute"]), float(line["loss"])) for line in lines]
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise ValueError(f"{path} holds no points ({error}); {FORM}") from None
    if len(found) < 2:
        raise ValueError(f"{path}: at least two points are needed, found {len(found)}")
    return found
