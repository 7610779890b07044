"""What the language model loses when its activations are replaced.

At the positions that rows are kept of, the site's value (of a transcoder: the target site's; of several sites: each of
them) is replaced by its reconstruction, by the mean row, or by zero; other positions (BOS, padding, outliers) stay as
they are. Cross entropies are in nats per token, over the predictions
made at those positions.

    ce_delta          ce_sae - ce_clean
    ce_recovered      (ce_zero - ce_sae) / (ce_zero - ce_clean)             SAEBench's ce_loss_score
    ce_recovered_mean (ce_mean - ce_sae) / (ce_mean - ce_clean)             the same against mean ablation
    kl                KL(clean || sae), mean over tokens
    kl_recovered      (kl_zero - kl) / kl_zero
    compute_equivalent    the share of the model's training compute after which its loss was ce_delta higher
"""

# Shape letters: R packed rows of tokens, T tokens of each, V vocabulary, n predictions.

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.metrics.base import Metric, Score, Totals, View
from saelab.metrics.chunks import TextChunk
from saelab.metrics.compute import Compute
from saelab.sae.autoencoder import Autoencoder


class Downstream(Metric):
    """Cross entropy and KL with original, reconstructed, mean- and zero-ablated activations.

    Args:
        compute: file of the model's loss against its training compute, see `compute.py`; with it, what the SAE costs is
            told as a share of that compute.
    """

    needs_model = True

    def __init__(self, compute: str | None = None):
        self.compute = compute
        self.totals, self.curve = Totals(), Compute(compute) if compute else None

    def update(self, view: View) -> None:
        text = view.text
        assert text is not None
        if Downstream not in text.cache:
            text.cache[Downstream] = Predictions(text, view.x)
        predictions: Predictions = text.cache[Downstream]
        values = predictions.values | predictions.with_rows("sae", view.x_hat)
        self.totals.add(text.group[:, :-1][predictions.counts], **values)

    def scores(self, sae: Autoencoder) -> dict[str, Score]:
        score = self.totals.score
        nats = "nats per token"
        return {
            "ce_clean": score(lambda clean, tokens: clean / tokens, nats),
            "ce_sae": score(lambda sae, tokens: sae / tokens, nats),
            "ce_mean": score(lambda mean, tokens: mean / tokens, nats),
            "ce_zero": score(lambda zero, tokens: zero / tokens, nats),
            "ce_delta": score(lambda sae, clean, tokens: (sae - clean) / tokens, nats),
            "ce_recovered": score(lambda zero, sae, clean: (zero - sae) / (zero - clean), "share"),
            "ce_recovered_mean": score(lambda mean, sae, clean: (mean - sae) / (mean - clean), "share"),
            "kl": score(lambda kl_sae, tokens: kl_sae / tokens, nats),
            "kl_mean": score(lambda kl_mean, tokens: kl_mean / tokens, nats),
            "kl_zero": score(lambda kl_zero, tokens: kl_zero / tokens, nats),
            "kl_recovered": score(lambda kl_zero, kl_sae: (kl_zero - kl_sae) / kl_zero, "share"),
        } | self._compute_equivalent()

    def _compute_equivalent(self) -> dict[str, Score]:
        if self.curve is None:
            return {}
        share = self.curve.share
        score = self.totals.score(lambda sae, clean, tokens: share((sae - clean) / tokens), "share of compute")
        delta = (self.totals.total("sae") - self.totals.total("clean")) / self.totals.total("tokens")
        beyond = self.curve.is_beyond(float(delta))
        return {"compute_equivalent": replace(score, unit="share of compute, at most") if beyond else score}


class Predictions:
    """A chunk's predictions: what does not depend on an SAE is worked out once, for all that are measured.

    Args:
        text: the chunk.
        x: its rows that are to be reconstructed, [B, D].
    """

    def __init__(self, text: TextChunk, x: Tensor):
        # Not the chunk itself, which holds this.
        self.text = replace(text, cache={})
        self.counts = text.keep[:, :-1] & (text.tokens.document[:, 1:] >= 0)
        self.clean = log_probabilities(text.logits, self.counts)
        self.target = text.tokens.ids[:, 1:][self.counts].to(self.clean.device)
        clean = F.nll_loss(self.clean, self.target, reduction="none")
        self.values = {"tokens": torch.ones(len(clean)), "clean": clean}
        self.values |= self.with_rows("mean", text.mean.expand_as(x))
        self.values |= self.with_rows("zero", torch.zeros_like(x))

    def with_rows(self, name: str, rows: Tensor) -> dict[str, Tensor]:
        """Cross entropy and KL of each prediction [n] with rows [B, D] in place of the chunk's."""
        logits = self.text.model.forward_with(self.text.tokens.ids, replaced(self.text, rows))
        changed = log_probabilities(logits, self.counts)
        kl = F.kl_div(changed, self.clean, log_target=True, reduction="none").sum(1)
        return {name: F.nll_loss(changed, self.target, reduction="none"), f"kl_{name}": kl}


def log_probabilities(logits: Tensor, predicts: Tensor) -> Tensor:
    """Log-probabilities [n, V] of the predictions [R, T - 1] bool that count, from logits [R, T, V]."""
    return F.log_softmax(logits[:, :-1][predicts.to(logits.device)].float(), dim=1)


def replaced(text: TextChunk, rows: Tensor) -> Tensor:
    """The activations [R, T, D] with the kept positions' values replaced."""
    activations = text.activations.clone()
    activations[text.keep.to(activations.device)] = rows.to(activations)
    return activations
