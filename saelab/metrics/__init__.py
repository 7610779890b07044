"""Floor 4: one number each, with an error bar, all in one sweep over the data."""

from saelab.metrics.base import Metric, Score
from saelab.metrics.evaluation import Evaluation, StoreEvaluation, TextEvaluation
from saelab.metrics.measure import measure

__all__ = ["Evaluation", "Metric", "Score", "StoreEvaluation", "TextEvaluation", "measure"]
