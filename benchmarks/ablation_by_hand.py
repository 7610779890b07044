"""What an ablation does to the logits, by hand:  python benchmarks/ablation_by_hand.py RUN [--positions 40]

At one token of each of some held-out rows, one thing after the other is taken out of the residual stream: contributions
of active latents, channels, random directions as long as those contributions, the SAE's error, the whole row. For each
the sparsity of `saelab.metrics.causal` over 16 tokens (V T entries), over the logits of the token itself (V entries),
the mean over the 16 tokens of the same, the share of the squared effect that falls on the token itself, and the norms
of what was taken out and of its effect. Hooks and formulas are written out here, independently of the metric; for TopK
SAEs with a dense dictionary of the bundled model.
"""

import argparse
import itertools
from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab.models.subject import Subject
from saelab.sae.files import load_sae
from saelab.sae.sae import SAE

TOKENS, CONTEXT, EACH = 16, 64, 6
COLUMNS = ("over V T", "at the token", "mean of tokens", "share at token", "norm taken", "norm of effect")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--positions", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    subject, sae = Subject(piece=2000), load_sae(options.run)
    model, found = subject.language_model(), defaultdict(list)
    layer = model.model.get_submodule(model.site)
    for block in itertools.islice(subject.token_rows(model, "held-out", 1), options.positions):
        document = block.document[0]
        last = CONTEXT - TOKENS
        fits = [t for t in range(1, last) if document[t] >= 0 and (document[t - 1 : t + TOKENS] == document[t]).all()]
        if not fits:
            continue
        t = fits[int(torch.randint(len(fits), (1,)))]
        ids = block.ids[:1, : t + TOKENS]
        clean, x = run(model.model, layer, ids, t)
        for kind, out in taken(sae, x):
            found[kind].append(shape(run(model.model, layer, ids, t, out)[0] - clean, out))
    print("taken out".ljust(12), "n".rjust(5), *(name.rjust(15) for name in COLUMNS))
    for kind, lines in found.items():
        means = torch.tensor(lines).mean(0).tolist()
        print(kind.ljust(12), str(len(lines)).rjust(5), *(f"{one:15.3f}" for one in means))


def taken(sae: SAE, x: Tensor) -> list[tuple[str, Tensor]]:
    """What is subtracted from a row x [D], and what it is."""
    dictionary, scale = sae.dictionary, sae.scale
    pre = ((x - scale.mean) / scale.size - dictionary.b_dec) @ dictionary.W_enc.T + dictionary.b_enc
    values, latents = pre.relu().topk(sae.activation.k)
    whole = values @ dictionary.W_dec[latents] + dictionary.b_dec
    parts = [values[n] * dictionary.W_dec[latents[n]] * scale.size for n in torch.randperm(len(values))[:EACH]]
    channels = [F.one_hot(channel, len(x)) * x for channel in torch.randperm(len(x))[:EACH]]
    random = [F.normalize(torch.randn(len(x)), dim=0) * part.norm() for part in parts]
    found = [("latent", one) for one in parts] + [("channel", one) for one in channels]
    found += [("random", one) for one in random]
    return [*found, ("error", x - whole * scale.size - scale.mean), ("row", x)]


@torch.no_grad()
def run(
    model: torch.nn.Module, layer: torch.nn.Module, ids: Tensor, t: int, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits [T, V] from t on, with `out` [D] subtracted there, and the row [D] at t as it was."""
    rows = []

    def hook(module, args, output):  # type: ignore[no-untyped-def]
        x = output[0] if isinstance(output, tuple) else output
        rows.append(x[0, t].clone())
        if out is None:
            return output
        x = x.clone()
        x[0, t] -= out
        return (x, *output[1:]) if isinstance(output, tuple) else x

    handle = layer.register_forward_hook(hook)
    logits = model(ids).logits[0, t:].double()
    handle.remove()
    return logits, rows[0]


def shape(effect: Tensor, out: Tensor) -> list[float]:
    """The columns for an effect [T, V]."""
    effect = effect - effect.median(1, keepdim=True).values
    power = effect.square().sum(1)
    each = effect.abs().sum(1).square() / power.clamp_min(1e-30) / effect.shape[1]
    together = effect.abs().sum().square() / power.sum() / effect.numel()
    return [
        one.item() for one in (together, each[0], each.mean(), power[0] / power.sum(), out.norm(), power.sum().sqrt())
    ]


if __name__ == "__main__":
    main()
