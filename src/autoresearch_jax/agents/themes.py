"""What an experiment was about, guessed from its description, and what each theme has brought.

A description names constants (`MATRIX_LR 0.04 -> 0.052, DEPTH 8 -> 9`) or is prose ("warm down over
the last 70%, since ..."). Constants decide where there are some; in prose, what is named first.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoresearch_jax.common.text import clean
from autoresearch_jax.records.experiment import Experiment

SIMPLER = "simplification"  # whatever else it is about
OTHER = "other"
# In lower case, with spaces for underscores. Of two that begin at one place the earlier row counts.
_THEMES = {
    "schedule": r"warm-?\s?(?:up|down)\w*|cool-?\s?down|final lr|schedul\w*|cosine|annea\w*"
    r"|(?:linear|constant|trapezoid\w*) (?:decay|rates?)",
    # Up to two words before it: in "embedding learning rate" it is not about embeddings.
    "learning rates": r"(?:[\w-]+ ){0,2}(?:learning[ -]rates?|lrs?\b|rates? of)",
    "regularisation": r"(?:[\w-]+ ){0,2}weight[ -]decay|regulari[sz]\w*|drop-?out|stochastic depth",
    "batch & steps": r"batch\w*|micro-?batch\w*|accumulat\w*|tokens (?:a|per) step"
    r"|(?:more|fewer|number of) (?:optimizer )?steps",
    "depth & width": r"depth|layers?|n layer|deep\w*|shallow\w*|width|wider|narrow\w*|n embd"
    r"|aspect ratio|model (?:size|dim)\w*|(?:larger|bigger|smaller) model",
    "loss": r"loss\w*|soft-?cap\w*|z-?loss|label smoothing|cross-?entropy|logits?|multi-token",
    "positions": r"rope|rotary|alibi|nope|positions?|positional",
    "attention": r"attention|attn|windows?|heads?|gqa|mqa|kv|qk\w*|quer(?:y|ies)|sliding",
    "optimizer": r"muon\w*|adam\w*|betas?|momentum|nesterov|optimi[sz]er|orthogonali[sz]\w*|polar"
    r"|newton-schulz|normuon|second moment|lion|soap|shampoo|epsilon|eps|(?:gradient )?clip\w*"
    r"|averag\w*|ema|swa",
    "precision & speed": r"(?:\w+ )?dtype|bf16|bfloat16|fp8|float32|fp32|precision"
    r"|fus(?:e|ed|ing)|kernels?|remat\w*|checkpointing|speed\w*|faster|throughput|unroll\w*",
    "initialisation": r"init|initiali[sz]\w*|zero-init\w*|(?:\w+ )?lambdas?",
    "embeddings": r"(?:un)?embed\w*|value emb\w*|\bve\b|wte|lm head|output head|tied?|untied?"
    r"|vocab\w*",
    "MLP": r"mlp|relu\w*|squared relu|swiglu|geglu|gelu|silu|glu|activations?|ffn|feed-?forward"
    r"|experts?|moe|hidden width|gat(?:e|es|ed|ing)",
}
THEMES = (*_THEMES, SIMPLER, OTHER)
_PATTERNS = {theme: re.compile(rf"\b(?:{words})\b") for theme, words in _THEMES.items()}
_SIMPLER = re.compile(r"\b(?:simpl\w*|less code|fewer lines|dead code|unused|clean(?:ing)? up)\b")
_CONSTANT = re.compile(r"\b[A-Z][A-Z0-9_]{3,}\b")
_REASON = re.compile(r"\b(?:because|since|so that|as|hoping|expecting)\b|[;:(]")


@dataclass(frozen=True)
class Total:
    """What a theme has brought so far."""

    theme: str
    tried: int
    kept: int
    crashed: int
    gain: float | None  # its largest fall of val_bpb below the best before; None: never


def themes_of(description: str) -> tuple[str, ...]:
    """The themes of an experiment, in THEMES' spelling; at least one."""
    text = clean(description)
    what = _REASON.split(text, maxsplit=1)[0]
    named = [_theme(name) for name in _CONSTANT.findall(text)]
    if not any(theme != OTHER for theme in named):
        named = [theme for theme in (_theme(what), _theme(text)) if theme != OTHER][:1]
    if _SIMPLER.search(text.lower()):
        named.append(SIMPLER)
    return tuple(dict.fromkeys(theme for theme in named if theme != OTHER)) or (OTHER,)


def _theme(text: str) -> str:
    """The theme that is named first."""
    text = text.lower().replace("_", " ")
    starts = {}
    for theme, pattern in _PATTERNS.items():
        match = pattern.search(text)
        if match:
            starts[theme] = match.start()
    return min(starts, key=starts.__getitem__, default=OTHER)


def changes(history: Sequence[Experiment]) -> Mapping[int, float]:
    """By number: its score minus the best that was kept before it; negative is better."""
    found, best = {}, None
    for e in history:
        if e.val_bpb is None or e.status is None:
            continue
        if best is not None:
            found[e.n] = e.val_bpb - best
        if e.status == "keep":
            best = e.val_bpb if best is None else min(best, e.val_bpb)
    return found


def totals(history: Sequence[Experiment]) -> list[Total]:
    """By theme, the most tried first. An experiment of two themes counts in both."""
    change = changes(history)
    decided = [e for e in history if e.status and e.base]  # a baseline is about nothing
    grouped: dict[str, list[Experiment]] = {}
    for e in decided:
        for theme in themes_of(e.description):
            grouped.setdefault(theme, []).append(e)
    found = [_total(theme, group, change) for theme, group in grouped.items()]
    return sorted(found, key=lambda total: (-total.tried, THEMES.index(total.theme)))


def _total(theme: str, group: Sequence[Experiment], change: Mapping[int, float]) -> Total:
    kept = [e for e in group if e.status == "keep"]
    crashed = sum(e.status == "crash" for e in group)
    gain = min((change[e.n] for e in kept if e.n in change), default=None)
    return Total(theme, len(group), len(kept), crashed, gain)
