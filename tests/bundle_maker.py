"""Bundles that agree with themselves, made without a training: as a sender can who knows the rules.

Nothing that reads a bundle can tell them from others, until it computes their score.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from autoresearch_jax.bundles import format as bundle_format
from autoresearch_jax.bundles import git_objects
from autoresearch_jax.jobs import scoring
from autoresearch_jax.records import journal
from tests import harness

TRAIN_PY = b"RATE = 0.2\n"
BASE_PY = b"RATE = 0.1\n"
DATA = {
    "fingerprint": "0123456789abcdef",
    "source": "pydocs",
    "num_shards": None,
    "column": "text",
    "validation": None,
    "constants": {"TIME_BUDGET": 300, "MAX_SEQ_LEN": 64, "EVAL_TOKENS": 3072, "VOCAB_SIZE": 512},
    "frozen": {"constants.py": "a" * 64, "prepare.py": "b" * 64},
    "tokenizer": "c" * 64,
    "token_bytes": "d" * 64,
    "splits": {"train": "e" * 64, "val": "f" * 64},
}
PARAMS = {"params/_METADATA": b"{}", "params/table/.zarray": b"{}", "params/table/0.0": b"12345678"}
Files = dict[str, bytes]


def commit_of(train_py: bytes, parent: str = "") -> tuple[str, bytes, bytes]:
    """Return the hash of a commit with that train.py alone, its object, and its tree."""
    like = "0" * 40
    blob = git_objects.object_id("blob", train_py, like)
    tree = b"100644 train.py\0" + bytes.fromhex(blob)
    who = b"autoresearch-jax <autoresearch-jax@localhost> 1796101109 +0000"
    parents = f"parent {parent}\n".encode() if parent else b""
    tree_id = git_objects.object_id("tree", tree, like).encode()
    content = b"tree %s\n%sauthor %s\ncommitter %s\n\nmessage\n" % (tree_id, parents, who, who)
    return git_objects.object_id("commit", content, like), content, tree


def files(
    *,
    score: float = 1.25,
    base_score: float = 1.5,
    train_py: bytes = TRAIN_PY,
    base_py: bytes = BASE_PY,
    exported: bytes = b"a function",
    params: Mapping[str, bytes] = PARAMS,
    data: Mapping[str, object] = DATA,
    device: str = "cpu",
    more: Iterable[dict] = (),
    **fields: object,
) -> Files:
    """Return the files of a bundle; `more` are further records, `fields` those of its manifest."""
    base, base_commit, base_tree = commit_of(base_py)
    commit, commit_object, tree = commit_of(train_py, base)
    joined = "\n".join(f"{name} {data['frozen'][name]}" for name in ("constants.py", "prepare.py"))
    fingerprint = {
        "frozen files": hashlib.sha256(joined.encode()).hexdigest()[:16],
        "scorer": scoring.code_sha256()[:16],
        "data": data["fingerprint"],
        "device": device,
        "device count": 1,
        "JAX": "0.10.2",
    }
    scored = {"exported.bin": exported, **params}
    left = scoring.seal_of({name: sha256(content) for name, content in scored.items()})
    provenance = {"tokenizer": data["tokenizer"], "device": device, "JAX": "0.10.2", "seed": 42}
    records: list[dict] = [{"step": "session", "fingerprint": fingerprint}]
    for n, one, before, val_bpb in ((0, base, "", base_score), (1, commit, base, score)):
        records += [
            {"step": "proposed", "n": n, "commit": one, "base": before, "description": f"idea {n}"},
            {"step": "trained", "n": n, "outcome": "ok", "left": left, "provenance": provenance},
            {"step": "scored", "n": n, "outcome": "ok", "metrics": {"val_bpb": val_bpb}},
            {"step": "decided", "n": n, "status": "keep"},
        ]
    made: Files = {
        "train.py": train_py,
        "git/commit": commit_object,
        "git/tree": tree,
        "base/train.py": base_py,
        "base/git/commit": base_commit,
        "base/git/tree": base_tree,
        "records.jsonl": sealed([*records, *more]),
        **scored,
    }
    manifest = {
        "format": "autoresearch-jax bundle 1",
        "program": "0.1.0",
        "made": 1796101109.0,
        "tag": "nov24",
        "n": 1,
        "commit": commit,
        "base": base,
        "val_bpb": score,
        "data": dict(data),
        **fields,
    }
    return listed(manifest, made)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sealed(records: Iterable[dict]) -> bytes:
    """Return records as the lines of a journal."""
    return b"".join(journal.seal(harness.event(**one)) for one in records)


def listed(manifest: Mapping[str, object], made: Files) -> Files:
    """Return files with a manifest that lists them as they are, and its hash."""
    parts = [
        {"name": name, "bytes": len(content), "sha256": sha256(content)}
        for name, content in made.items()
    ]
    return hashed({**manifest, "files": parts}, made)


def hashed(manifest: Mapping[str, object], made: Files) -> Files:
    """Return files with this manifest, and its hash."""
    content = json.dumps(manifest).encode()
    digest = f"{sha256(content)}  manifest.json\n".encode()
    return {bundle_format.MANIFEST: content, bundle_format.DIGEST: digest, **made}


def parts_of(made: Files) -> tuple[dict, Files]:
    """Return the manifest of some files, and the files that it lists."""
    left = dict(made)
    left.pop(bundle_format.DIGEST)
    return json.loads(left.pop(bundle_format.MANIFEST)), left


def changed(made: Files, change, **fields: object) -> Files:
    """Return files after `change(files)`, which their manifest lists as they are then."""
    manifest, left = parts_of(made)
    change(left)
    return listed({**manifest, **fields}, left)


def packed(made: Files | Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """Return an archive of files, or of any entries, as Python's own tar writes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info, content in entries(made) if isinstance(made, dict) else made:
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def entries(made: Files) -> list[tuple[tarfile.TarInfo, bytes]]:
    found = []
    for name, content in made.items():
        info = tarfile.TarInfo(name)
        info.size = len(content)
        found.append((info, content))
    return found


def write(path: Path, made: Files) -> Path:
    path.write_bytes(packed(made))
    return path


def read(path: Path) -> Files:
    """Return the files of a real bundle."""
    with tarfile.open(path) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar}
