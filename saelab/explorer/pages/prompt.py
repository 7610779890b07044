"""Type a text: what fires, what ablation does, how the model goes on with latents steered. All limits stand here."""

from collections.abc import Sequence
from typing import Any

from saelab.explorer.lens import MODES, Change, Lens
from saelab.explorer.route import Page, Route
from saelab.explorer.windows import label_of, units_of
from saelab.explorer.workspace import Member, Workspace
from saelab.models.token_text import Spelled, strongest, unit_at

CHARACTERS, TOKENS = 4000, 256
"""Of a prompt, at most."""
CHANGES, STRENGTH, NEW_TOKENS = 16, 50.0, 64
"""Latents changed at once, how much, and tokens written, at most."""
BEFORE, AFTER = 48, 16
"""Tokens around an example that the model reads for ablation effects, at most."""
ROUTES = (
    Page("/run/{name}/prompt", lambda w, r: page(w, r.name), name="prompt", title="Prompt", module="prompt"),
    Route("/run/{name}/prompt", lambda w, r: prompt(w, r.name, r.body), "POST"),
    Route("/run/{name}/ablate", lambda w, r: ablate(w, r.name, r.body), "POST"),
    Route("/run/{name}/steer", lambda w, r: steer(w, r.name, r.body), "POST"),
    Route("/run/{name}/latent/{latent}/effects", lambda w, r: effects(w, r.name, r.latent, r.number("row"))),
)


def page(workspace: Workspace, name: str) -> dict[str, Any]:
    """The page without a text; what it shows is asked for by the page itself."""
    member = workspace[name]
    limits = {"characters": CHARACTERS, "changes": CHANGES, "strength": STRENGTH, "new_tokens": NEW_TOKENS}
    return {"page": "prompt", "title": f"Prompt, {name}", "run": name, "limits": limits, "others": [
        other for other in workspace.members if other != name
    ], "model": member.saved.origin.get("model")}  # fmt: skip


def _spelled(lens: Lens, text: Any) -> Spelled:
    """A text with its tokens, without the one that texts begin with."""
    if not isinstance(text, str) or not text:
        raise ValueError("text must be a non-empty text")
    if len(text) > CHARACTERS:
        raise ValueError(f"text is {len(text):,} characters long; at most {CHARACTERS:,} are read")
    found = lens.model.token_text.of_text(text)
    count, most = len(lens.with_first_token(found.ids)), min(TOKENS, lens.model.context or TOKENS)
    if count > most:
        raise ValueError(f"text is {count:,} tokens long; at most {most:,} are read")
    return found


def prompt(workspace: Workspace, name: str, body: dict[str, Any]) -> dict[str, Any]:
    """Which latents fire on each token of a text; tokens that are parts of one character are one."""
    member = workspace[name]
    lens = workspace.lens(member)
    spelled = _spelled(lens, body.get("text"))
    if not spelled.ids:
        raise ValueError("text has no tokens")
    by_token = lens.by_token(lens.with_first_token(spelled.ids))[lens.start() :]
    shown = spelled.units()
    latents = [_strongest(by_token[unit.first : unit.last]) for unit in shown]
    numbers = sorted({one["latent"] for own in latents for one in own})
    return {
        "tokens": [unit.text for unit in shown],
        "latents": latents,
        "about": _about(member, numbers),
        "why_no_logit": lens.why_no_logit,
    }


def _strongest(of_parts: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The latents active at the parts of a character, each where it is strongest; the strongest first."""
    found: dict[int, dict[str, Any]] = {}
    for one in sorted((one for part in of_parts for one in part), key=lambda one: -abs(one["value"])):
        found.setdefault(one["latent"], one)
    return list(found.values())


def _about(member: Member, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
    """What the table says about latents; nothing where nothing was collected."""
    if not member.is_collected:
        return {}
    found = {}
    for number in numbers:
        own = member.database.latent(number)
        if own:
            found[number] = {key: own[key] for key in ("tokens", "density", "largest", "explanation", "kind")}
    return found


def ablate(workspace: Workspace, name: str, body: dict[str, Any]) -> dict[str, Any]:
    """What each latent active at one token of a text does there: exact, by running the model without it."""
    member = workspace[name]
    lens = workspace.lens(member)
    spelled = _spelled(lens, body.get("text"))
    shown, ids = spelled.units(), lens.with_first_token(spelled.ids)
    place = _whole(body, "token", 0, len(shown) - 1)
    positions = range(shown[place].first + lens.start(), shown[place].last + lens.start())
    _, codes = lens.read(ids)
    own = slice(positions.start, positions.stop)
    active = codes.indices[own][codes.values[own] != 0].unique(sorted=True).tolist()[:64]
    found = []
    for latent, effect in zip(active, lens.ablated(ids, active, positions) if active else [], strict=True):
        after = slice(max(0, positions.start - 1), None)
        found.append({"latent": latent, "loss": sum(effect["loss"][after]), "kl": sum(effect["kl"][after])})
    return {"token": place, "effects": found}


def effects(workspace: Workspace, name: str, number: int, row: int) -> dict[str, Any]:
    """What a latent does around one row of the corpus: per-token effects of its ablation, and the tokens it moves."""
    member = workspace[name]
    member.need_text()
    lens = workspace.lens(member)
    if not 0 <= number < member.sae.n_latents:
        raise LookupError(f"{name} has no latent {number}")
    if not 0 <= row < member.database.meta()["rows"]:
        raise LookupError(f"there is no row {row}")
    room = (lens.model.context or BEFORE + 1 + AFTER) - lens.start()
    after = min(AFTER, room // 4)
    first = max(0, row - min(BEFORE, room - 1 - after))
    corpus = member.database.corpus(first, row + after + 1)
    own = [place for place, document in enumerate(corpus["document"]) if document == corpus["document"][row - first]]
    start = lens.start()
    tokens = corpus["token"][own[0] : own[-1] + 1].tolist()
    ids = lens.with_first_token(tokens)
    focus = row - first - own[0] + start
    (effect,) = lens.ablated(ids, [number])
    before, after = effect["logs"]
    at = min(focus, len(ids) - 2)
    moved = lens.moved_tokens(before[at], after[at])
    _, codes = lens.read(ids)
    values = [float((codes.values[t] * (codes.indices[t] == number)).sum()) for t in range(start, len(ids))]
    shown = units_of(member, first + own[0], first + own[-1] + 1)
    # What is said at a token is about that token: the prediction that was made before it.
    loss, kl = ([0.0, *effect[key]][start:] for key in ("loss", "kl"))
    return {
        "tokens": [unit.text for unit in shown],
        "focus": unit_at(focus - start, shown),
        "values": [float(f"{value:.4g}") for value in strongest(values, shown)],
        "loss": [sum(loss[unit.first : unit.last]) for unit in shown],
        "kl": [sum(kl[unit.first : unit.last]) for unit in shown],
        "moved": {side: [[label_of(member, token), *rest] for token, *rest in pairs] for side, pairs in moved.items()},
    }


def steer(workspace: Workspace, name: str, body: dict[str, Any]) -> dict[str, Any]:
    """How the model goes on with a text, unchanged and with latents changed."""
    member = workspace[name]
    lens = workspace.lens(member)
    spelled = _spelled(lens, body.get("text"))
    ids = lens.with_first_token(spelled.ids)
    changes = _changes(body.get("changes"), member.sae.n_latents)
    tokens = _whole(body, "tokens", 1, NEW_TOKENS)
    temperature, seed = _number(body, "temperature", 0.0, 2.0), _whole(body, "seed", 0, 1 << 31)
    most = lens.model.context
    if most and len(ids) + tokens > most:
        raise ValueError(f"text and continuation are longer than the {most} tokens that the model takes")
    about = _about(member, [change.latent for change in changes])
    largest = [abs(about.get(change.latent, {}).get("largest") or 1.0) for change in changes]
    plain = lens.continued(ids, [], [], tokens, temperature, seed)
    steered = lens.continued(ids, changes, largest, tokens, temperature, seed)
    return {
        "plain": _continuation(lens, spelled.ids, plain),
        "steered": _continuation(lens, spelled.ids, steered),
        "largest": largest,
    }


def _continuation(lens: Lens, ids: Sequence[int], following: Sequence[int]) -> list[str]:
    """The text of tokens that follow others."""
    shown = lens.model.token_text.of_ids([*ids, *following]).units()
    return [unit.text for unit in shown if unit.last > len(ids)]


def _changes(given: Any, n_latents: int) -> list[Change]:
    if not isinstance(given, list) or len(given) > CHANGES:
        raise ValueError(f"changes must be a list of at most {CHANGES}")
    found = []
    for one in given:
        if not isinstance(one, dict) or one.get("mode") not in MODES:
            raise ValueError(f"a change has a latent, a value and a mode, which is {' or '.join(MODES)}")
        latent, value = _whole(one, "latent", 0, n_latents - 1), _number(one, "value", -STRENGTH, STRENGTH)
        found.append(Change(latent, one["mode"], value))
    return found


def _whole(body: dict[str, Any], name: str, least: int, most: int) -> int:
    value = body.get(name)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {str(value)[:40]}")
    return value


def _number(body: dict[str, Any], name: str, least: float, most: float) -> float:
    value: Any = body.get(name)
    if type(value) not in (int, float) or not least <= value <= most:  # nor is NaN
        raise ValueError(f"{name} must be a number from {least:g} to {most:g}, got {str(value)[:40]}")
    return float(value)
