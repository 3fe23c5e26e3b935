"""Whether what a bundle says agrees with itself. Its score is another matter: that is computed.

A sender who knows the rules can make a set of records that agree. So these checks find what was
altered or damaged on the way, and bind the score to the files that are scored; what the sender has
measured, only a new measurement shows.
"""

import hashlib

from autoresearch_jax.bundles import evidence, git_objects
from autoresearch_jax.bundles.evidence import Evidence
from autoresearch_jax.bundles.format import (
    BASE,
    BASE_COMMIT,
    BASE_TREE,
    COMMIT,
    RECORDS,
    TREE,
    Refused,
)
from autoresearch_jax.bundles.reading import Bundle
from autoresearch_jax.common.protocol import EXPORTED, PARAMS
from autoresearch_jax.data.manifest import FROZEN, SPLITS
from autoresearch_jax.jobs import scoring
from autoresearch_jax.records.events import Outcome
from autoresearch_jax.repo.workspace import is_tag


def check(bundle: Bundle) -> Evidence:
    """Return what the records of a bundle say. Raises Refused where the bundle disagrees."""
    manifest, texts = bundle.manifest, bundle.texts
    if not is_tag(manifest.tag):
        raise Refused("format", "its tag is not a valid one")
    git_objects.check_file(manifest.commit, texts[COMMIT], texts[TREE], "train.py", bundle.train_py)
    if manifest.base:
        base = texts[BASE_COMMIT], texts[BASE_TREE]
        git_objects.check_file(manifest.base, *base, "train.py", texts[BASE])
    found = evidence.read(texts[RECORDS], manifest.n, manifest.commit, manifest.base)
    _check_score(bundle, found)
    _check_data(bundle, found)
    artifacts = (EXPORTED, f"{PARAMS}/")
    scored = {p.name: p.sha256 for p in manifest.files if p.name.startswith(artifacts)}
    if scoring.seal_of(scored) != found.experiment.left:
        why = "the function and the arrays are not those that the records say were scored"
        raise Refused("altered-parameters", why)
    return found


def _check_score(bundle: Bundle, found: Evidence) -> None:
    manifest, e = bundle.manifest, found.experiment
    if manifest.split != "val":
        named = manifest.split if manifest.split in SPLITS else "another"
        raise Refused("another-split", f"its score is of the {named} split, and should be of val")
    if (e.outcome, e.scored) != (Outcome.OK, Outcome.OK) or e.val_bpb is None or e.status is None:
        raise Refused("altered-records", f"they say no score of experiment {e.n}")
    if not e.val_bpb > 0:
        raise Refused("edited-score", f"a val_bpb of {e.val_bpb} is none")
    if manifest.val_bpb != e.val_bpb:
        what = f"it claims {manifest.val_bpb:.6f}, and its records say {e.val_bpb:.6f}"
        raise Refused("edited-score", what)


def _check_data(bundle: Bundle, found: Evidence) -> None:
    """Raise Refused unless manifest and records name the same data, tokenizer and frozen code."""
    data, known, rests_on = (
        bundle.manifest.data,
        found.began.fingerprint,
        found.experiment.provenance,
    )
    if known.get("data") != data.fingerprint:
        raise Refused("another-data", "its records are of other data than it claims")
    if rests_on.get("tokenizer", data.tokenizer) != data.tokenizer:
        raise Refused("another-vocabulary", "its records are of another tokenizer than it claims")
    joined = "\n".join(f"{name} {data.frozen.get(name, '')}" for name in FROZEN)
    if known.get("frozen files") != hashlib.sha256(joined.encode()).hexdigest()[:16]:
        why = f"its records are of other {' and '.join(FROZEN)} than it claims"
        raise Refused("another-frozen-code", why)
    for name in ("device", "device count", "JAX"):
        if name in rests_on and rests_on[name] != known.get(name):
            raise Refused("altered-records", f"they name two kinds of {name}")
