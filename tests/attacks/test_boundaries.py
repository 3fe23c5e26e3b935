"""Trainings that access other files, other trainings, and the programs that run after them.

The same train.py tries the same at each level of isolation. Where only a sandbox stops it, it
succeeds without one, which shows that the attack is real.
"""

import os
import site
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest
from autoresearch_jax.sandbox import seccomp
from autoresearch_jax.system import bytecode, installed
from tests import harness, levels
from tests.attacks import channels, lab
from tests.attacks.lab import train_py
from tests.levels import EVERY, STRONGEST_BY_DAY, filtered
from tests.tiers import cases

DENIED = {"PermissionError", "FileNotFoundError", "NotADirectoryError", "OSError"}
MARK = f"autoresearch_attack_{os.getpid()}"  # of files in shared places
SECRETS = {"OPENAI_API_KEY": "s3cret", "HF_TOKEN": "s3cret", "MY_DATABASE": "s3cret"}
FORGED_ROW = "abcdef0\t0.000123\t0.0\tkeep\tforged\n"

# ---------------------------------------------------------------------------------- the attacks

REACHES = """
def read(path):
    return tried(lambda: open(path, "rb").read(1) and "read")

def write(path, text):
    return tried(lambda: open(path, "a").write(text) and "written")

def environments():
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            found.append(place.read_bytes().decode(errors="replace"))
        except OSError:
            pass
    return "".join(found)
"""
REACHED = """
note(read={{name: read(path) for name, path in {read!r}.items()}})
note(written={{name: write(path, {mark!r}) for name, path in {write!r}.items()}})
note(results=write({results!r}, {row!r}))
note(secrets=sorted(name for name, text in os.environ.items() if "s3cret" in text),
     others="s3cret" in environments())
"""

# It edits its copies of the frozen files, and leaves files for the scorer to find.
EDITED = """
Path("prepare.py").write_text("raise SystemExit('edited')")
Path("constants.py").write_text("VOCAB_SIZE = 2")
import constants
constants.EVAL_TOKENS = prepare.EVAL_TOKENS = 64
prepare.VOCAB_SIZE = 2
answer = json.dumps({"val_bpb": 0.000123})
note(answer=tried(lambda: Path(os.environ["HOME"], "..", "answer.json").write_text(answer)))
for name in ("prepare.py", "constants.py"):
    for folder in ("frozen", "scratch"):
        place = Path("..", folder)
        tried(lambda: place.mkdir())
        tried(lambda: (place / name).write_text("raise SystemExit('edited')"))
"""

# Files that one training leaves for another, in every place that both know.
PLACES = """
places = ["/tmp", "/var/tmp", "/dev/shm", os.environ["HOME"], os.environ["TMPDIR"], ".", "..",
          os.environ["JAX_COMPILATION_CACHE_DIR"], os.environ["AUTORESEARCH_RUN_DIR"],
          os.environ["AUTORESEARCH_HOME"]]
"""
LEFT = PLACES + f"note(left=[p for p in places if tried(lambda: Path(p, '{MARK}').touch()) == ''])"
FOUND = PLACES + f"note(found=[p for p in places if os.path.exists(Path(p, '{MARK}'))])"
SHARED = {"/tmp", "/var/tmp", "/dev/shm", ".."}  # where one is found without a sandbox

# It starts from the best experiment's parameters: training that no clock measured.
WARM = """
import orbax.checkpoint as ocp
target = {{"table": jax.ShapeDtypeStruct((V, V), np.float32)}}
try:
    params = ocp.StandardCheckpointer().restore({best!r}, target)
    note(warm=True)
except Exception as error:
    note(warm=False)
"""

# It trains on the rows that it will be scored on.
SEEN = """
def counted(rows):
    counts = np.full((V, V), 0.01)
    np.add.at(counts, (rows[:, :-1].ravel(), rows[:, 1:].ravel()), 1)
    return np.log(counts / counts.sum(1, keepdims=True)).astype(np.float32)

try:
    params = {{"table": jnp.asarray(counted(np.fromfile({rows!r}, "<u2").reshape(-1, T + 1)))}}
    note(seen=True)
except OSError:
    note(seen=False)
"""

# A process that outlives it replaces its parameters by better ones.
DAEMON = """
import shutil
from autoresearch_jax.kit import artifacts
BATCHES = 200
artifacts.save_arrays(LEFT / "later", {"table": count(prepare.make_loader("train", 16))})
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 3)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (LEFT / "alive").touch()
        time.sleep(0.5)
        shutil.rmtree(LEFT / "params")
        (LEFT / "later").rename(LEFT / "params")
        time.sleep(600)
    os._exit(0)
while not (LEFT / "alive").exists():
    time.sleep(0.01)
note(alive=True)
os._exit(0)
"""
DAEMON_FIRST = "global BATCHES"

KEPT_SHUT = (
    "validation rows",
    "sealed rows",
    "held-out text",
    "more held-out text",
    "parameters of the best",
    "journal",
)
KEPT_WHOLE = (
    "checkout",
    "manifest",
    "tokenizer",
    "token bytes",
    "train rows",
    "validation rows",
    "text",
    "journal",
    "parameters of the best",
    "scorer's cache",
    "packages",
    "bytecode",
)


@pytest.fixture(scope="module", params=STRONGEST_BY_DAY)
def reached(request, template, tmp_path_factory):
    """Run a loop at each level, in which trainings try to access all that they know of."""
    level = request.param
    ground = template.copy(tmp_path_factory.mktemp("reached") / "ground")
    paths = places(ground)
    planted = paths["packages"]
    # Without a sandbox these end the loop, so the tests below try them one at a time.
    write = {name: str(paths[name]) for name in KEPT_WHOLE if level != "none"}
    reach = REACHED.format(
        read={name: str(paths[name]) for name in KEPT_SHUT},
        write=write,
        mark=MARK,
        results=str(ground.root / "results.tsv"),
        row=FORGED_ROW,
    )
    shared = f"shared = {str(paths['train rows'])!r}\n"
    leaves = shared + channels.LEAVE + channels.SOCKETS + "note(kernel=left, opened=opened)\n"
    looks = shared + channels.LOOK + "note(kernel=found)\n"
    attacks = {
        "reaches": train_py(REACHES + leaves, first=reach + LEFT, last=EDITED),
        "finds": train_py(looks, first=FOUND),
        "warm": train_py(trained=WARM.format(best=str(paths["best"] / "params"))),
        "daemon": train_py(first=DAEMON_FIRST, last=DAEMON),
    }
    try:
        yield level, lab.Group(ground, attacks, level=level, **SECRETS)
    finally:
        for folder in SHARED - {".."}:
            Path(folder, MARK).unlink(missing_ok=True)
        planted.unlink(missing_ok=True)


def places(ground: lab.Ground) -> dict[str, Path]:
    """Return the paths of the targets of attacks."""
    with ground.environment():
        data = manifest.load(ground.root)
        held_out = [Path(shard.path) for shard in data.shards if shard.split != "train"]
        found = {
            "manifest": data.path,
            "tokenizer": data.tokenizer_path,
            "token bytes": data.token_bytes_path,
            "train rows": data.split_path("train"),
            "validation rows": data.split_path("val"),
            "sealed rows": data.split_path("sealed"),
        }
    state = ground.workspace.state_dir(lab.TAG)
    best = state / "runs" / "0" / "artifacts"
    assert len(held_out) == 2
    assert all(path.is_file() for path in [*found.values(), *held_out])
    return found | {
        "held-out text": held_out[0],
        "more held-out text": held_out[1],
        "text": held_out[0],
        "checkout": ground.root / "program.md",
        "journal": state / "journal.jsonl",
        "best": best,
        "parameters of the best": best / "exported.bin",
        "scorer's cache": ground.home / "scorer-cache" / "planted",
        "packages": Path(site.getsitepackages()[0]) / f"{MARK}.py",
        "bytecode": next(bytecode.folder().rglob("autoresearch_jax/scorer/model.*.pyc")),
    }


# --------------------------------------------------------------------------------- at each level


def test_held_out_data_cannot_be_read(reached):
    level, group = reached
    group.check_honest("reaches")
    said = group.noted("reaches")["read"]
    assert said.keys() == set(KEPT_SHUT)
    allowed = {"read"} if level == "none" else DENIED
    assert [what for what in KEPT_SHUT if said[what] not in allowed] == [], said


def test_shared_files_cannot_be_written(reached):
    level, group = reached
    if level == "none":
        pytest.skip("without a sandbox it can be written")
    group.check_honest("reaches")
    assert group.noted("reaches")["written"].keys() == set(KEPT_WHOLE)  # maybe in its own /tmp
    paths = places(group.ground)
    changed = [
        what
        for what in KEPT_WHOLE
        if paths[what].exists() and MARK.encode() in paths[what].read_bytes()
    ]
    assert changed == []


def test_results_are_a_projection_of_the_journal(reached):
    level, group = reached
    group.check_honest("reaches")
    assert level != "none" or group.noted("reaches")["results"] == "written"
    assert "forged" not in (group.ground.root / "results.tsv").read_text()
    assert len(harness.rows(group.ground.root)) == len(group.ground.history)


def test_files_left_for_the_scorer_are_not_read(reached):
    """Nor are its copies of the frozen files: the scorer and the next training have their own."""
    _, group = reached
    group.check_honest("reaches")
    assert group.noted("reaches")["answer"] > 0  # it may write there
    group.check_honest("finds")


def test_secrets_are_not_in_its_environment(reached):
    level, group = reached
    assert group.noted("reaches")["secrets"] == []
    if level != "none":  # of this process, which has them
        assert group.noted("reaches")["others"] is False


def test_trainings_cannot_talk_to_each_other(reached):
    level, group = reached
    group.check_honest("finds")
    left, found = group.noted("reaches")["left"], group.noted("finds")["found"]
    assert len(left) >= 5
    home = str(group.ground.home)
    assert set(found) == SHARED | {home} if level == "none" else found == []


@filtered
def test_nothing_that_a_training_leaves_in_the_kernel_reaches_another(reached):
    _, group = reached
    group.check_honest("reaches")
    group.check_honest("finds")
    left, found = group.noted("reaches")["kernel"], group.noted("finds")["kernel"]
    assert left.keys() > found.keys()
    assert set(left.values()) == {"PermissionError", "OSError", "nothing"}, left
    assert {name for name, word in found.items() if word == "done"} == set()
    assert set(group.noted("reaches")["opened"].values()) == {"PermissionError"}


@filtered
def test_a_record_says_that_system_calls_are_filtered(reached):
    _, group = reached
    assert group.experiment("reaches").provenance["system calls"] == "filtered by seccomp"


def test_earlier_parameters_are_out_of_reach(reached):
    level, group = reached
    if level == "none":
        e = group.check_not_kept("warm")
        assert e.val_bpb == group.ground.baseline
    else:
        group.check_honest("warm")
    assert group.noted("warm") == {"warm": level == "none"}


def test_a_process_that_outlives_a_training_is_ended(reached):
    _, group = reached
    e = group.check_honest("daemon")
    assert group.noted("daemon") == {"alive": True}
    artifacts = group.ground.workspace.run_dir(lab.TAG, e.n) / "artifacts"
    assert not processes_of(artifacts)


def processes_of(artifacts: Path) -> list[str]:
    """Return the processes that were started with this folder in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(artifacts).encode() in place.read_bytes():
                found.append(place.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.nightly
@pytest.mark.parametrize("level", EVERY)
def test_training_on_the_scored_rows_is_impossible(template, tmp_path, level):
    ground = template.copy(tmp_path / "ground")
    rows = places(ground)["validation rows"]
    group = lab.Group(ground, {"seen": train_py(trained=SEEN.format(rows=str(rows)))}, level=level)
    assert group.noted("seen") == {"seen": level == "none"}
    if level == "none":  # the attack is real, and it succeeds
        assert group.experiment("seen").status == "keep"
    else:
        group.check_honest("seen")


@filtered
@pytest.mark.nightly
def test_without_the_filter_a_training_finds_what_another_left(template, tmp_path):
    """The channels of the tests above are real: this is what they do without the filter."""
    ground = template.copy(tmp_path / "ground")
    (tmp_path / "shared").touch()
    shared = f"shared = {str(tmp_path / 'shared')!r}\n"
    harmless = channels.LEAVE.partition('    "mode in /proc"')[0] + "})\n"
    attacks = {
        "leaves": train_py(shared + harmless + "note(kernel=left)"),
        "finds": train_py(shared + channels.LOOK + channels.TIDY + "note(kernel=found)"),
    }
    group = lab.Group(ground, attacks, level="none", **{seccomp.SWITCH: "0"})
    left, found = group.noted("leaves")["kernel"], group.noted("finds")["kernel"]
    works = {name for name in found if left[name] == "done"}  # some file systems have no flags
    assert works >= {"user keyring", "shared memory", "queue of POSIX", "mode", "time"}
    assert {name for name, word in found.items() if word == "done"} >= works - {"session keyring"}


# ------------------------------------------------------------------------------- without a sandbox


@pytest.mark.parametrize(
    "what", cases(["tokenizer", "token bytes", "validation rows"], ["tokenizer"])
)
def test_without_a_sandbox_altered_data_ends_the_loop(template, tmp_path, what):
    ground = template.copy(tmp_path / "ground")
    before, rows = ground.history, harness.rows(ground.root)
    path = places(ground)[what]
    altered = f"""
    data = bytearray(Path({str(path)!r}).read_bytes())
    data[-1] ^= 1
    Path({str(path)!r}).write_bytes(data)
    """
    with pytest.raises(UserError, match=f"{path.name} was altered"):
        ground.loop(train_py(last=altered), level="none")
    lab.check_the_past(ground, before, rows)
    assert ground.history[-1].status is None  # to be repeated once the data is repaired


@pytest.mark.nightly
def test_without_a_sandbox_a_journal_that_was_written_to_ends_the_loop(template, tmp_path):
    ground = template.copy(tmp_path / "ground")
    before, rows = ground.history, harness.rows(ground.root)
    path = places(ground)["journal"]
    before_attack = path.read_bytes()
    with pytest.raises(UserError, match="cannot be trusted"):
        ground.loop(train_py(last=f"open({str(path)!r}, 'a').write('x\\n')"), level="none")
    assert path.read_bytes().startswith(before_attack)
    path.write_bytes(before_attack)
    lab.check_the_past(ground, before, rows)


@pytest.mark.nightly
@pytest.mark.parametrize("where", ["packages", "bytecode"])
def test_without_a_sandbox_an_installed_package_ends_the_loop(
    template, tmp_path, monkeypatch, where
):
    ground = template.copy(tmp_path / "ground")
    before, rows = ground.history, harness.rows(ground.root)
    packages = tmp_path / "packages"  # in place of the real ones, which others use meanwhile
    for folder in (packages, tmp_path / "bytecode"):
        folder.mkdir()
        (folder / "package.py").touch()
    monkeypatch.setattr(installed, "__file__", str(packages / "system" / "installed.py"))
    monkeypatch.setattr(installed, "sys", SimpleNamespace(path=[str(packages)], argv=sys.argv))
    monkeypatch.setattr(bytecode, "folder", lambda: tmp_path / "bytecode")
    train = train_py(last=f"Path({str(tmp_path / where)!r}, 'planted.py').write_text('x = 1')")
    with pytest.raises(UserError, match=r"changed installed packages \(\S+/planted\.py"):
        ground.loop(train, level="none", watched=True)
    lab.check_the_past(ground, before, rows)
    assert ground.history[-1].status is None


# ------------------------------------------------------------------------------- compile caches

# The scorer's own program, compiled with the targets' nats halved, under the name of the real one.
POISONED = """
from autoresearch_jax.scorer import model
cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])

def compiled():
    jax.clear_caches()
    before = set(cache.iterdir())
    exported = jax.export.deserialize(bytearray((LEFT / "exported.bin").read_bytes()))
    flat = model.read_params(LEFT / "params", exported)
    prepare.Evaluator(exported.call, flat, 64)
    new = [path for path in cache.iterdir() if path not in before and "judge" in path.name]
    return [path for path in new if path.name.endswith("-cache")]

real = compiled()
log = jnp.log
jnp.log = lambda x: log(x) * 0.5
forged = compiled()
note(real=len(real), forged=len(forged))
for path in (real[0], cache / "jit_planted-cache"):
    path.write_bytes(forged[0].read_bytes())
for folder in (cache.parent / "baseline-cache", {scorer_cache!r}):
    tried(lambda: Path(folder).mkdir())
    tried(lambda: Path(folder, real[0].name).write_bytes(forged[0].read_bytes()))
"""
LISTED = """
note(cache=sorted(path.name for path in Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).iterdir()))
"""
CACHE_ALL = {  # small programs as well
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


@pytest.mark.nightly
@levels.boxed
def test_a_poisoned_compile_cache_reaches_nobody(template, tmp_path):
    ground = template.copy(tmp_path / "ground")
    scorer_cache = str(ground.home / "scorer-cache")
    group = lab.Group(
        ground,
        {
            "poisons": train_py(last=POISONED.format(scorer_cache=scorer_cache)),
            "honest": train_py(first=LISTED),
        },
        **CACHE_ALL,
    )
    assert group.noted("poisons") == {"real": 1, "forged": 1}
    group.check_honest("poisons")
    group.check_honest("honest")
    assert group.noted("honest") == {"cache": []}
