"""A language model on this machine that answers questions: free text, or picks from a list.

Picks are decoded under constraint: the option that the model finds likeliest comes next, so that even a small model
always answers. Text is greedy. No sampling, no chat templates.
"""

# Shape letters: T tokens of a prompt, V vocabulary.

from collections.abc import Sequence

import torch

from saelab.core.mesh import device_named
from saelab.models.loading import check_causal, check_tokenizer, loaded_model, trial_ids


class LocalWriter:
    """A `transformers` causal language model that writes.

    Args:
        name: a folder, a name on the hub, or `pycode-7m`.
        device: where it runs.
    """

    def __init__(self, name: str, device: str = "auto"):
        self.name, self.device = name, device_named(device)
        self.model, self.tokenizer = loaded_model(name, torch.float32)
        check_tokenizer(self.model, self.tokenizer, name)
        self.model.to(self.device).eval().requires_grad_(False)
        with torch.no_grad():
            check_causal(self.model(input_ids=trial_ids(self.model), use_cache=False).logits, name)
        self.context: int = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2048

    def _ids(self, prompt: str, room: int) -> torch.Tensor:
        """Ids of a prompt [1, T]; of one that is too long, its end."""
        ids = self.tokenizer.encode(prompt)[-max(1, self.context - room) :]
        return torch.tensor([ids], device=self.device)

    @torch.no_grad()
    def text(self, prompt: str, most: int) -> str:
        """What follows the prompt, up to the end of a line that is not empty; at most `most` tokens."""
        ids, past = self._ids(prompt, most), None
        said: list[int] = []
        for _ in range(min(most, self.context - 1)):
            out = self.model(input_ids=ids, past_key_values=past, use_cache=True)
            past, following = out.past_key_values, int(out.logits[0, -1].argmax())
            if following == self.tokenizer.eos_token_id:
                break
            said.append(following)
            ids = torch.tensor([[following]], device=self.device)
            words = self.tokenizer.decode(said)
            if words.strip() and words.endswith("\n"):
                break
        return str(self.tokenizer.decode(said)).strip()

    @torch.no_grad()
    def picks(self, prompt: str, options: Sequence[str], count: int) -> list[str]:
        """`count` of the options, one after another, each the likeliest after those before it."""
        starts = [self.tokenizer.encode(f" {option}", add_special_tokens=False) for option in options]
        wanted = [start[-1] for start in starts]
        ids, past, picked = self._ids(prompt, 2 * count), None, []
        for _ in range(min(count, self.context // 2)):
            out = self.model(input_ids=ids, past_key_values=past, use_cache=True)
            past, best = out.past_key_values, int(out.logits[0, -1][wanted].argmax())
            picked.append(options[best])
            ids = torch.tensor([[wanted[best]]], device=self.device)
        return picked + [options[0]] * (count - len(picked))
