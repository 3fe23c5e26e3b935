"""Bundles: what is refused, by which name, and that nothing that is mutated gets through."""

import gzip
import hashlib
import io
import json
import shutil
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoresearch_jax.bundles import agreement, reading
from autoresearch_jax.bundles.format import Refused
from autoresearch_jax.common.errors import UserError
from tests import bundle_maker

pytestmark = pytest.mark.timeout(1800)  # 10,000 mutated archives take minutes


def checked(path: Path, folder: Path | None = None):
    bundle = reading.read(path, folder)
    return bundle, agreement.check(bundle)


def refusal(path: Path, content: bytes | bundle_maker.Files) -> Refused:
    """Return why a bundle is refused; nothing may be written but in the folder for it."""
    inside, before = path.with_name("inside"), {*path.parent.rglob("*")}
    path.write_bytes(content if isinstance(content, bytes) else bundle_maker.packed(content))
    with pytest.raises(Refused) as found:
        checked(path, inside)
    shutil.rmtree(inside, ignore_errors=True)
    after = {*path.parent.rglob("*")}
    assert after <= {*before, path}
    return found.value


@pytest.fixture
def path(tmp_path):
    return tmp_path / "one.bundle.tar"


def test_what_agrees_with_itself_is_read(path, tmp_path):
    made = bundle_maker.files()
    bundle, found = checked(bundle_maker.write(path, made), tmp_path / "arrays")
    assert (bundle.train_py, bundle.base_py) == (b"RATE = 0.2\n", b"RATE = 0.1\n")
    assert (found.experiment.n, found.experiment.val_bpb, found.change) == (1, 1.25, -0.25)
    assert (tmp_path / "arrays" / "params/table/0.0").read_bytes() == b"12345678"
    assert sorted(bundle.texts) == sorted(name for name in made if is_text(name))
    assert bundle.digest == hashlib.sha256(made["manifest.json"]).hexdigest()


def is_text(name: str) -> bool:
    return not name.startswith(("manifest", "params/", "exported"))


def test_a_baseline_has_no_other_train_py(path):
    made = bundle_maker.files()
    manifest, left = bundle_maker.parts_of(made)
    lines = left["records.jsonl"].splitlines(keepends=True)
    left = {k: v for k, v in left.items() if not k.startswith("base/")}
    left |= {"records.jsonl": b"".join(lines[:5])}
    commit, left["git/commit"], left["git/tree"] = bundle_maker.commit_of(bundle_maker.BASE_PY)
    left["train.py"] = bundle_maker.BASE_PY
    manifest |= {"n": 0, "commit": commit, "base": "", "val_bpb": 1.5}
    _, found = checked(bundle_maker.write(path, bundle_maker.listed(manifest, left)))
    assert (found.base, found.change) == (None, None)


# ------------------------------------------------------------------------------- the archive


def hostile(info: tarfile.TarInfo, content: bytes = b"") -> list[tuple[tarfile.TarInfo, bytes]]:
    """Return the entries of a bundle, and another one."""
    info.size = len(content)
    return [*bundle_maker.entries(bundle_maker.files()), (info, content)]


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


HOSTILE = {
    "an absolute path": ("path-outside", tarfile.TarInfo("/tmp/outside")),
    "a path that leads out": ("path-outside", tarfile.TarInfo("params/../../outside")),
    "a symbolic link": ("link", special("params/l", tarfile.SYMTYPE, "/etc/passwd")),
    "a hard link": ("link", special("params/l", tarfile.LNKTYPE, "train.py")),
    "a device": ("device", special("params/d", tarfile.CHRTYPE)),
    "a pipe": ("device", special("params/p", tarfile.FIFOTYPE)),
    "a file of holes": ("holes", special("params/s", tarfile.GNUTYPE_SPARSE)),
    "a file twice": ("twice", tarfile.TarInfo("train.py")),
    "another file": ("unlisted", tarfile.TarInfo("params/another")),
    "a program": ("unlisted", tarfile.TarInfo("setup.py")),
    "a folder": ("unlisted", special("params/folder", tarfile.DIRTYPE)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_archive_is_refused_that_has(path, name):
    rule, info = HOSTILE[name]
    assert refusal(path, bundle_maker.packed(hostile(info))).name == rule


def test_a_file_that_expands_is_refused_before_it_is_read(path):
    bomb = gzip.compress(bytes(50 << 20))
    assert refusal(path, bomb).name == "compressed"
    made = bundle_maker.files()
    for magic in reading.COMPRESSED:
        assert refusal(path, magic + bundle_maker.packed(made)).name == "compressed"


def test_an_extended_header_is_refused(path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("manifest.json")
        info.pax_headers = {"path": "/tmp/outside", "size": "99999999999"}
        tar.addfile(info)
    assert refusal(path, out.getvalue()).name == "extension"


def test_a_size_that_is_more_than_the_file_has_is_torn(path):
    made = bundle_maker.files()
    content = bundle_maker.packed(made)
    for end in (0, 100, 511, 512, 1500, len(content) // 2, len(content) - 10240):
        assert refusal(path, content[:end]).name == "torn", end


def test_bytes_after_the_end_are_refused(path):
    content = bundle_maker.packed(bundle_maker.files())
    assert refusal(path, content + b"more").name == "trailing-bytes"
    assert refusal(path, content + bytes(2 << 20)).name == "trailing-bytes"


def test_what_is_no_bundle_is_said(path, tmp_path):
    assert refusal(path, b"import os\n" * 100).name == "not-a-bundle"
    assert refusal(path, bundle_maker.packed({"readme.txt": b"x"})).name == "not-a-bundle"
    with pytest.raises(UserError, match="there is no file"):
        reading.read(tmp_path / "none")
    with pytest.raises(UserError, match="is no plain file"):
        reading.read(tmp_path)


# ------------------------------------------------------------------------------ the manifest


@pytest.mark.parametrize("name", ["train.py", "git/tree", "records.jsonl", "params/table/0.0"])
def test_an_altered_file_is_named(path, name):
    made = bundle_maker.files()
    made[name] = made[name][:-1] + bytes([made[name][-1] ^ 1])
    found = refusal(path, made)
    assert (found.name, name in found.detail) == ("altered-file", True)


def test_an_altered_manifest_is_named(path):
    made = bundle_maker.files()
    made["manifest.json"] = made["manifest.json"].replace(b"1.25", b"1.15")
    assert refusal(path, made).name == "altered-manifest"


def test_a_manifest_lists_what_a_bundle_has_and_no_more(path):
    made = bundle_maker.files()

    def with_files(change):
        manifest, left = bundle_maker.parts_of(made)
        change(manifest["files"])
        return refusal(path, bundle_maker.hashed(manifest, left))

    def part(name, size=0):
        return {"name": name, "bytes": size, "sha256": "0" * 64}

    assert with_files(lambda f: f.append(part("train.py"))).name == "twice"
    assert with_files(lambda f: f.append(part("params/table"))).name == "twice"  # and a folder
    assert with_files(lambda f: f.append(part("hook.py"))).name == "unlisted"
    assert with_files(lambda f: f.append(part("params/../x"))).name == "unlisted"
    assert with_files(lambda f: f.append(part("../x"))).name == "unlisted"
    assert with_files(lambda f: f.append(part("/x"))).name == "format"
    assert with_files(lambda f: f.append(part("params/a b"))).name == "format"
    assert with_files(lambda f: f.append(part("exported.bin2", 1 << 40))).name == "format"
    assert with_files(lambda f: f.__delitem__(0)).name == "missing"
    large = with_files(lambda f: f[0].update(bytes=1 << 30))
    assert (large.name, "train.py" in large.detail) == ("too-large", True)
    many = with_files(lambda f: f.extend(part(f"params/{n}", 1 << 35) for n in range(3)))
    assert many.name == "too-large"
    assert with_files(lambda f: f[0].update(bytes=5)).name == "altered-file"


@pytest.mark.parametrize(
    "fields",
    [
        {"n": -1},
        {"n": "1"},
        {"commit": "main"},
        {"base": "HEAD"},
        {"val_bpb": "1.25"},
        {"format": "autoresearch-jax bundle 2"},
        {"more": 1},
        {"data": {**bundle_maker.DATA, "tokenizer": "x"}},
    ],
)
def test_a_manifest_is_parsed_strictly(path, fields):
    made = bundle_maker.changed(bundle_maker.files(), lambda _: None, **fields)
    assert refusal(path, made).name == "format"


def test_a_nested_manifest_is_refused(path):
    _, left = bundle_maker.parts_of(bundle_maker.files())
    content = b"[" * 100_000 + b"]" * 100_000
    digest = f"{hashlib.sha256(content).hexdigest()}  manifest.json\n".encode()
    made = {"manifest.json": content, "manifest.sha256": digest, **left}
    assert refusal(path, made).name == "format"


# ------------------------------------------------------------------------------- what it says


def test_an_edited_score_is_refused(path):
    assert refusal(path, bundle_maker.files(val_bpb=1.0)).name == "edited-score"
    assert refusal(path, bundle_maker.files(score=-1.0)).name == "edited-score"


def test_another_split_is_refused(path):
    assert refusal(path, bundle_maker.files(split="train")).name == "another-split"
    assert refusal(path, bundle_maker.files(split="sealed")).name == "another-split"


def edited_records(edit):
    def change(left):
        lines = [json.loads(line) for line in left["records.jsonl"].splitlines()]
        for line in lines:
            line.pop("crc")
        edit(lines)
        left["records.jsonl"] = bundle_maker.sealed(lines)

    return bundle_maker.changed(bundle_maker.files(), change)


def set_field(at, name, value):
    return lambda lines: lines[at].__setitem__(name, value)


REPEATED = {
    "step": "repeated", "n": 1, "seed": 43, "purpose": "noise", "split": "val", "outcome": "ok"
}  # fmt: skip
RECORDS = {  # the edit, and how it is named; lines: session, then four of 0 and four of 1
    "another score": (set_field(7, "metrics", {"val_bpb": 1.0}), "edited-score"),
    "no score": (set_field(7, "outcome", "refused"), "altered-records"),
    "another commit": (set_field(5, "commit", "0" * 40), "altered-records"),
    "another base": (set_field(5, "base", "0" * 40), "altered-records"),
    "other arrays": (set_field(6, "left", "0" * 64), "altered-parameters"),
    "another tokenizer": (set_field(6, "provenance", {"tokenizer": "9"}), "another-vocabulary"),
    "another device": (set_field(6, "provenance", {"device": "TPU v4"}), "altered-records"),
    "other data": (lambda lines: lines[0]["fingerprint"].update(data="9"), "another-data"),
    "other code": (
        lambda lines: lines[0]["fingerprint"].update({"frozen files": "9"}),
        "another-frozen-code",
    ),
    "no decision": (lambda lines: lines.pop(), "altered-records"),
    "no session": (lambda lines: lines.pop(0), "altered-records"),
    "two sessions": (lambda lines: lines.insert(3, lines[0]), "altered-records"),
    "a proposal twice": (lambda lines: lines.append(lines[5]), "altered-records"),
    "an unknown step": (lambda lines: lines.append({"step": "paid"}), "altered-records"),
    "a person": (
        lambda lines: lines.append(
            {"step": "taken back", "n": 0, "request": "r", "by": "b", "asked": 1.0}
        ),
        "altered-records",
    ),
    "another experiment": (
        lambda lines: lines.append({"step": "scored", "n": 7, "outcome": "ok"}),
        "altered-records",
    ),
    "nothing": (lambda lines: lines.clear(), "altered-records"),
    "scores whose sum is too large": (
        lambda lines: lines.extend(2 * [REPEATED | {"metrics": {"val_bpb": 1e308}}]),
        "altered-records",
    ),
    "a number of a thousand digits": (
        lambda lines: lines.append(REPEATED | {"seed": 10**1000}),
        "altered-records",
    ),
    "no depth": (
        lambda lines: lines.append(
            {
                "step": "scaled",
                "n": 1,
                "baseline": 0,
                "depth": 0,
                "val_bpb": 1.0,
                "baseline_bpb": 1.0,
            }
        ),
        "altered-records",
    ),
    "a time that is none": (set_field(7, "time", 1e300), "altered-records"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_refused_that_say(path, name):
    edit, rule = RECORDS[name]
    assert refusal(path, edited_records(edit)).name == rule


def test_what_was_carried_over_together_is_read_without_the_others(path):
    def together(lines):
        lines[5] |= {"of": 3, "together": [3, 2]}

    bundle = reading.read(bundle_maker.write(path, edited_records(together)))
    assert agreement.check(bundle).experiment.of is None


@pytest.mark.parametrize(
    "data",
    [
        {"constants": {"TIME_BUDGET": 10**4000}},
        {"constants": {f"A{n}": n for n in range(101)}},
    ],
)
def test_sizes_have_bounds(path, data):
    made = bundle_maker.files(data={**bundle_maker.DATA, **data})
    assert refusal(path, made).name == "format"


def test_a_record_with_a_wrong_checksum_is_refused(path):
    def change(left):
        left["records.jsonl"] = left["records.jsonl"].replace(b"idea 1", b"idea 2")

    assert refusal(path, bundle_maker.changed(bundle_maker.files(), change)).name == (
        "altered-records"
    )


def test_a_record_whose_step_is_no_word_is_refused(path):
    def change(left):
        left["records.jsonl"] += seal_any({"step": []})

    made = bundle_maker.changed(bundle_maker.files(), change)
    assert refusal(path, made).name == "altered-records"


def test_another_train_py_than_that_of_the_commit_is_refused(path):
    def change(left):
        left["train.py"] = b"RATE = 0.3\n"

    assert refusal(path, bundle_maker.changed(bundle_maker.files(), change)).name == (
        "altered-train-py"
    )

    def with_base(left):
        left["base/train.py"] = b"RATE = 0.3\n"

    assert refusal(path, bundle_maker.changed(bundle_maker.files(), with_base)).name == (
        "altered-train-py"
    )

    def with_tree(left):
        _, _, left["git/tree"] = bundle_maker.commit_of(b"RATE = 0.3\n")

    assert refusal(path, bundle_maker.changed(bundle_maker.files(), with_tree)).name == (
        "altered-commit"
    )


# ----------------------------------------------------------------------------- any mutation


def outcome(path: Path, content: bytes):
    """Return the bundle if it is read; anything but a refusal is a fault."""
    inside = path.with_name("inside")
    path.write_bytes(content)
    try:
        bundle, found = checked(path, inside)
    except Refused:
        return None
    finally:
        outside = {one.name for one in path.parent.iterdir()} - {path.name, inside.name}
        shutil.rmtree(inside, ignore_errors=True)
        assert not outside
    return bundle, found


MADE = bundle_maker.files()
WHOLE = bundle_maker.packed(MADE)
EDITS = st.lists(
    st.one_of(
        st.tuples(
            st.just("set"), st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=9)
        ),
        st.tuples(st.just("cut"), st.integers(0, len(WHOLE) - 1), st.integers(1, 2048)),
        st.tuples(
            st.just("put"), st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=600)
        ),
        st.tuples(st.just("twice"), st.integers(0, len(WHOLE) // 512 - 1), st.integers(1, 4)),
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture
def mutated(nightly):
    """How many mutated archives are tried."""
    return 10_000 if nightly else 200


def run(test, count):
    own = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    settings(max_examples=count, deadline=None, suppress_health_check=own)(test)()


def test_no_mutated_archive_says_anything_else(tmp_path, mutated):
    """It is refused, or it has the very same content: only bytes were changed that say nothing."""
    path = tmp_path / "one.bundle.tar"
    (honest, _) = outcome(path, WHOLE)

    @given(EDITS)
    def test(edits):
        content = bytearray(WHOLE)
        for kind, at, what in edits:
            if kind == "set":
                content[at : at + len(what)] = what
            elif kind == "cut":
                del content[at : at + what]
            elif kind == "put":
                content[at:at] = what
            else:
                content[at * 512 : at * 512] = content[at * 512 : (at + what) * 512]
        found = outcome(path, bytes(content))
        if found is not None:
            bundle, _ = found
            same = (bundle.manifest, bundle.digest, bundle.texts)
            assert same == (honest.manifest, honest.digest, honest.texts)

    run(test, mutated)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=6,
)


def mutate_json(data, path, value):
    """Replace, remove or add something somewhere in plain data."""
    at = data
    while isinstance(at, dict | list) and at and path:
        keys = sorted(at) if isinstance(at, dict) else range(len(at))
        key = keys[path[0] % len(keys)]
        if len(path) == 1 or not isinstance(at[key], dict | list) or not at[key]:
            if path[0] % 5 == 0:
                del at[key]
            else:
                at[key] = value
            return
        at, path = at[key], path[1:]


def test_whatever_a_sender_says_consistently_it_is_refused_or_read(tmp_path, mutated):
    """The manifest and the records are mutated, and all hashes and checksums are made anew."""
    path = tmp_path / "one.bundle.tar"
    places = st.lists(st.integers(0, 30), min_size=1, max_size=6)

    @given(st.lists(st.tuples(st.booleans(), places, ANY), min_size=1, max_size=3))
    def test(edits):
        manifest, left = bundle_maker.parts_of(MADE)
        lines = [json.loads(line) for line in left["records.jsonl"].splitlines()]
        for of_manifest, where, value in edits:
            mutate_json(manifest if of_manifest else lines, where, value)
        left["records.jsonl"] = b"".join(seal_any(line) for line in lines)
        parts = manifest.get("files")
        for one in parts if isinstance(parts, list) else ():
            if isinstance(one, dict) and one.get("name") == "records.jsonl":
                content = left["records.jsonl"]
                one |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        outcome(path, bundle_maker.packed(bundle_maker.hashed(manifest, left)))

    run(test, mutated // 2)


def seal_any(line) -> bytes:
    """Return plain data as a line of a journal, whatever it is, with its checksum."""
    if isinstance(line, dict):
        line.pop("crc", None)
    body = json.dumps(line).encode()[:-1]
    return body + b', "crc": "%08x"}' % zlib.crc32(body) + b"\n"


def test_any_entries_of_a_tar_are_refused_or_read(tmp_path, mutated):
    path = tmp_path / "one.bundle.tar"
    kinds = st.sampled_from([*b"01234567", *b"SxgLKD\0"])
    names = st.sampled_from([*MADE, "../x", "/x", "params", "params/a/../../../x", "", "."]) | (
        st.text(max_size=120)
    )
    hostile_entry = st.tuples(names, kinds, st.binary(max_size=600), st.integers(0, 20))

    @given(st.lists(hostile_entry, min_size=1, max_size=3))
    def test(found):
        made = bundle_maker.entries(MADE)
        for name, kind, content, at in found:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = bytes([kind]), len(content), "/etc/passwd"
            made.insert(min(at, len(made)), (info, content))
        out = io.BytesIO()
        for info, content in made:
            out.write(info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape"))
            out.write(content + bytes(-len(content) % 512))
        outcome(path, out.getvalue() + bytes(1024))

    run(test, mutated // 2)
