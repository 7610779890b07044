"""The model's loss with stitched SAEs in the place of activations, step by step from one SAE to another.

    ce_delta = CE with the reconstruction in place - CE of the model          nats per token, over the same predictions

as in `saelab.metrics.downstream`.
"""

# Shape letters: R packed rows of tokens, T tokens of each, n rows kept, P points, D width.

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.analysis.swaps import reconstructions
from saelab.metrics.chunks import TextChunk
from saelab.metrics.evaluation import TextEvaluation

if TYPE_CHECKING:
    from saelab.analysis.stitch import Pair


def loss_along(evaluation: TextEvaluation) -> Callable[["Pair", list[int]], dict[int, float]]:
    """What `stitch` takes as `loss`: measures on a text of which the model's activations are read again.

    Raises:
        ValueError: where the rows cannot be put back into the model.
    """
    if evaluation.why_no_model:
        raise ValueError(f"the model's loss {evaluation.why_no_model}")

    @torch.no_grad()
    def measured(pair: "Pair", at: list[int]) -> dict[int, float]:
        total, count = torch.zeros(len(at), dtype=torch.float64), 0
        for chunk in evaluation.chunks(need_logits=True):
            text = chunk.text
            assert text is not None
            x_hat, _ = reconstructions(pair.small, pair.large, pair.steps, at, chunk.x)
            predicts = text.keep[:, :-1] & (text.tokens.document[:, 1:] >= 0)
            clean = _nll(text.logits, text, predicts)
            for place in range(len(at)):
                activations = text.activations.clone()
                activations[text.keep.to(activations.device)] = x_hat[:, place].to(activations)
                total[place] += _nll(text.model.forward_with(text.tokens.ids, activations), text, predicts) - clean
            count += int(predicts.sum())
        return dict(zip(at, (total / max(count, 1)).tolist(), strict=True))

    return measured


def _nll(logits: Tensor, text: TextChunk, predicts: Tensor) -> float:
    """Sum of the negative log likelihoods of the tokens that are predicted."""
    target = text.tokens.ids[:, 1:][predicts].to(logits.device)
    chosen = logits[:, :-1][predicts.to(logits.device)].float()
    return F.cross_entropy(chosen, target, reduction="sum").item()
