"""Real sandboxes: what a process in one can read, write, reach and leave behind."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import termios
import textwrap
import threading
import time
from pathlib import Path

import pytest

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.sandbox import hidden, isolation, landlock, seccomp
from autoresearch_jax.sandbox.isolation import Sandbox
from autoresearch_jax.system import process
from tests.attacks import channels
from tests.levels import BOXES, EVERY, filtered, why_not

# Helpers that answer each question with "" or the name of the error.
PRELUDE = """
import json, os, socket, sys

def tried(action):
    try:
        return action() or ""
    except Exception as error:
        return type(error).__name__

def read(path):
    return tried(lambda: open(path).read())

def write(path):
    return tried(lambda: open(path, "w").write("x") and "written")

def answer(**words):
    print(json.dumps(words))
"""


@pytest.fixture
def run(tmp_path):
    """Run Python, or a command, in a sandbox whose current folder is `work`."""
    scratch, work = isolation.fresh(tmp_path / "scratch"), tmp_path / "work"
    work.mkdir()

    def run(level, program, *, given=None, env=None, abandoned=lambda: False, **fields):
        if isinstance(program, str):
            program = [sys.executable, "-c", PRELUDE + textwrap.dedent(program)]
        fields["readable"] = (work, *fields.get("readable", ()))
        sandbox = Sandbox(scratch=scratch, **fields)
        assert not isolation.unavailable(level)
        return process.Running(
            isolation.wrap(level, program, sandbox),
            cwd=work,
            env=env or isolation.environment(given or os.environ, scratch),
            stdout=tmp_path / "out",
        ).wait(limit_s=60, abandoned=abandoned)

    return run


@pytest.fixture
def ask(run, tmp_path):
    """Run Python that calls answer(), and return the arguments of that call."""

    def ask(level, program, **options):
        ended = run(level, program, **options)
        said = (tmp_path / "out").read_text()
        assert ended.returncode == 0, said
        return json.loads(said.splitlines()[-1])

    return ask


def make(folder, *names):
    """Write files that contain their names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    return folder


# ------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("level", BOXES)
def test_a_training_sees_what_is_named_and_nothing_else(ask, level, tmp_path):
    data = make(tmp_path / "data", "train", "validation", "keys/private", "link-target")
    repository = make(tmp_path / "repository", "train.py")
    (data / "link").symlink_to("link-target")
    (tmp_path / "work" / "sideways").symlink_to(data / "validation")
    found = ask(
        level,
        f"""
        from pathlib import Path
        data, repository = Path({str(data)!r}), Path({str(repository)!r})
        answer(
            train=read(data / "train"),
            link=read(data / "link"),
            validation=read(data / "validation"),
            sideways=read("sideways"),
            deeper=read(data / "keys" / "private"),
            roots=[read(f"/proc/{{pid}}/root{{data}}/validation")
                   for pid in ("self", 1, os.getppid(), {os.getpid()})],
            repository=read(repository / "train.py"),
            this_test=read({__file__!r}),
            overwritten=write(repository / "train.py"),
            made=write(repository / "new"),
            in_data=write(data / "train"),
            in_work=write("new"),
            kept=write({str(tmp_path / "run" / "kept")!r}),
            truncated=tried(lambda: os.truncate(repository / "train.py", 0)),
            removed=tried(lambda: os.unlink(data / "train")),
            system=write("/etc/new") + " " + write("/usr/new"),
            python=write(os.path.join(sys.prefix, "new")) + " " + write(sys.executable),
        )
        """,
        readable=(data,),
        writable=(make(tmp_path / "run", "old"),),
        hidden=(data / "validation", data / "keys", tmp_path / "nowhere"),
    )
    seen = {name: found.pop(name) for name in ("train", "link", "kept")}
    assert seen == {"train": "train", "link": "link-target", "kept": "written"}
    for name, words in found.items():
        for word in words if isinstance(words, list) else words.split() or [""]:
            assert word in ("", "PermissionError", "FileNotFoundError", "OSError"), (name, words)
            assert word or name in ("validation", "sideways", "roots"), (name, words)
    assert (tmp_path / "run" / "kept").read_text() == "x"
    assert (data / "train").read_text() == "train"
    assert (repository / "train.py").read_text() == "train.py"
    assert [path.name for path in repository.iterdir()] == ["train.py"]


@pytest.mark.parametrize("level", BOXES)
@pytest.mark.parametrize("everything", [False, True])
def test_the_inner_path_decides(ask, level, everything, tmp_path):
    home = make(tmp_path / "home", "a", "prepared/x", "prepared/y", "w/v/secret", "w/v/open", "b/c")
    (home / "w" / "run").mkdir()
    questions = f"""
        from pathlib import Path
        home = Path({str(home)!r})
        names = ("a", "prepared/x", "prepared/y", "w/v/secret", "w/v/open", "b/c")
        new = ("w/run/new", "w/new", "b/new")
        answer(
            seen=[name for name in names if read(home / name) == name.split("/")[-1]],
            kept=[name for name in new if write(home / name) == "written"],
        )
        """
    fields = {"everything": everything, "writable": (home / "w" / "run",)}
    found = ask(
        level,
        questions,
        readable=(home / "prepared" / "x", home / "w" / "v"),
        hidden=(home, home / "w" / "v" / "secret"),
        **fields,
    )
    assert found == {"seen": ["prepared/x", "w/v/open"], "kept": ["w/run/new"]}
    found = ask(level, questions, readable=(home,), hidden=(home / "w", home / "b/c"), **fields)
    assert found == {"seen": ["a", "prepared/x", "prepared/y"], "kept": ["w/run/new"]}
    fields["writable"] = (home,)
    found = ask(level, questions, readable=(home / "w",), hidden=(home / "prepared",), **fields)
    assert found == {"seen": ["a", "w/v/secret", "w/v/open", "b/c"], "kept": ["b/new"]}
    same = {"readable": (home / "w",), "hidden": (home / "w",)}  # contradictions: less is given
    assert ask(level, questions, **same) == {"seen": [], "kept": []}


@pytest.mark.parametrize("level", BOXES)
def test_links_inside_a_sandbox_have_the_same_targets(ask, level, tmp_path):
    disk = make(tmp_path / "disk", "home/data/train", "home/data/validation", "other")
    (tmp_path / "first").symlink_to("disk/home")
    (tmp_path / "second").symlink_to(tmp_path / "first" / "data")
    (disk / "latest").symlink_to("home/data/../data/train")
    found = ask(
        level,
        f"""
        from pathlib import Path
        top = Path({str(tmp_path)!r})
        names = ("second/train", "first/data/train", "disk/home/data/train", "disk/latest")
        answer(
            seen=[read(top / name) for name in names],
            hidden=[read(top / name.replace("train", "validation")) for name in names[:3]],
            other=read(top / "disk" / "other"),
        )
        """,
        readable=(tmp_path / "second", disk / "latest"),
        hidden=(tmp_path / "first" / "data" / "validation",),
    )
    assert found["seen"] == ["train"] * 4
    assert "validation" not in found["hidden"]
    assert found["other"] in ("PermissionError", "FileNotFoundError")


@pytest.mark.parametrize("level", BOXES)
def test_an_agent_reads_everything_but_what_is_hidden(ask, level, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(make(tmp_path / "person", ".agent/login", ".agent/state/old")))
    repository = make(tmp_path / "repository", "train.py", ".git/state/journal", ".git/config")
    worktree = make(repository / ".git" / "state" / "agent", "train.py")
    found = ask(
        level,
        f"""
        from pathlib import Path
        repository = Path({str(repository)!r})
        state, home = repository / ".git" / "state", Path.home()
        answer(
            seen=[read(path) for path in (
                home / ".agent/login", repository / ".git/config", state / "agent/train.py",
            )],
            names=sorted(os.listdir(repository)),
            test=len(read({__file__!r})),
            hidden=read(state / "journal"),
            kept=[write(state / "agent/train.py"), write(home / ".agent/state/new")],
            lost=[write(repository / "train.py"), write(state / "new"), write(home / "new")],
            disk=[name for name in os.listdir("/dev") if name.startswith(("sd", "vd", "nvme"))
                  and read("/dev/" + name) not in ("PermissionError", "IsADirectoryError")],
            shared=write("/dev/shm/autoresearch-test"),
        )
        """,
        env=dict(os.environ),
        everything=True,
        readable=(tmp_path,),  # bwrap puts a /tmp of its own over this one
        writable=(worktree, tmp_path / "person" / ".agent" / "state"),
        hidden=(repository / ".git" / "state",),
    )
    Path("/dev/shm/autoresearch-test").unlink(missing_ok=True)
    in_tmp = Path(__file__).is_relative_to("/tmp")  # and a sandbox has a /tmp of its own
    assert found.pop("test") > 1000 or (level == "bwrap" and in_tmp)
    assert found.pop("hidden") in ("PermissionError", "FileNotFoundError")
    assert set(found.pop("lost")) <= {"PermissionError", "OSError", "FileNotFoundError"}
    assert found == {
        "seen": ["login", "config", "train.py"],
        "names": [".git", "train.py"],
        "kept": ["written", "written"],
        "disk": [],
        "shared": "written",
    }
    assert (worktree / "train.py").read_text() == "x"


@pytest.mark.parametrize("level", BOXES)
def test_nothing_reaches_the_next_training(ask, level, tmp_path):
    program = """
        import tempfile
        places = ["/tmp", "/var/tmp", "/dev/shm", os.environ["HOME"], tempfile.gettempdir()]
        answer(
            found=[place for place in places if os.path.exists(place + "/autoresearch-test")],
            empty=[tried(lambda: os.listdir(place)) for place in places[3:]],
            home=[os.path.expanduser("~"), tempfile.gettempdir()],
            made=[write(place + "/autoresearch-test") for place in places],
        )
        """
    for _ in range(2):
        found = ask(level, program)
        scratch = tmp_path / "scratch"
        assert found["home"] == [str(scratch / "home"), str(scratch / "tmp")]
        assert found["empty"] == ["", ""]
        assert found["found"] == []
        assert found["made"][3:] == ["written"] * 2
        assert not list(Path("/dev/shm").glob("autoresearch-test"))
        (scratch / "home" / "closed").mkdir(mode=0)
        isolation.fresh(scratch)


# ------------------------------------------------------------------------- kernel objects


@filtered
@pytest.mark.parametrize("level", EVERY)
def test_nothing_is_left_in_the_kernel(ask, level, tmp_path):
    """Neither by a training or a scorer, nor, in the keyrings, by an agent."""
    shared = make(tmp_path / "work", "shared") / "shared"
    before = shared.stat()
    program = f"shared = {str(shared)!r}\n" + channels.LEAVE + channels.SOCKETS
    program += "answer(left=left, opened=opened)"
    found = ask(level, program)
    assert len(found["left"]) > 20
    assert set(found["left"].values()) == {"PermissionError", "OSError", "nothing"}, found
    assert set(found["opened"].values()) == {"PermissionError"}
    after = shared.stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    left = ask(level, program, everything=True, network=True)["left"]
    assert (left["user keyring"], left["session keyring"]) == ("PermissionError",) * 2


@filtered
@pytest.mark.parametrize("level", BOXES)
def test_services_of_the_user_are_not_reached(ask, level, tmp_path):
    """Through systemd or a container engine, a training could run any command without a sandbox."""
    path = make(tmp_path, "run/other") / "run" / "socket"
    program = f"""
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).bind("\\0as-CUDA-does")
        answer(connected=[
            tried(lambda: socket.socket(socket.AF_UNIX, kind).connect({str(path)!r}) or "yes")
            for kind in (socket.SOCK_STREAM, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        ])
        """
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(str(path))
        service.listen()
        denied = {"landlock": "PermissionError", "bwrap": "FileNotFoundError"}[level]
        assert ask(level, program)["connected"] == [denied] * 2
        seen = "yes" if level == "landlock" else denied  # in bwrap /tmp is private
        assert ask(level, program, everything=True)["connected"] == [seen] * 2  # an agent


@pytest.mark.parametrize("level", BOXES)
def test_a_terminal_is_not_reached(ask, level):
    ours, theirs = os.openpty()
    try:
        path, before = os.ttyname(theirs), termios.tcgetattr(theirs)
        found = ask(
            level,
            f"""
            import termios
            def set_up():
                with open({path!r}, "r+b", buffering=0) as terminal:
                    attributes = termios.tcgetattr(terminal)
                    attributes[4] = attributes[5] = termios.B50
                    termios.tcsetattr(terminal, termios.TCSANOW, attributes)
            answer(changed=tried(set_up))
            """,
        )
        assert found["changed"] in ("PermissionError", "FileNotFoundError")
        assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)


@filtered
@pytest.mark.parametrize("level", EVERY)
def test_ordinary_work_is_not_denied(ask, level):
    """What Python, JAX and its libraries do: sockets, threads, limits, links, pipes, locks."""
    found = ask(
        level,
        """
        import ctypes, fcntl, multiprocessing, resource, shutil, socket, subprocess, tempfile
        from pathlib import Path
        folder = tempfile.mkdtemp()
        source, copied = folder + "/a", folder + "/b"
        write(source)
        def locked():
            with open(source) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                fcntl.lockf(open(copied, "w"), fcntl.LOCK_EX)
        def worked():
            ours, theirs = multiprocessing.Pipe()
            with ours, theirs:
                worker = multiprocessing.Process(target=theirs.send, args=("",))
                worker.start()
                return ours.recv()
        def touched():
            Path(folder, "new").touch()
            Path(folder, "new").unlink()
            Path(source).touch()
            subprocess.run(["touch", source], check=True)
            subprocess.run(["cp", "-p", source, source + "-2"], check=True)
        def placed():
            threads = ctypes.CDLL(None)
            threads.pthread_self.restype = ctypes.c_ulong
            core = (ctypes.c_ulong * 16)(*[2**64 - 1] * 16)
            own = ctypes.c_ulong(threads.pthread_self())
            return threads.pthread_setaffinity_np(own, 128, core) or ""
        answer(
            copied=tried(lambda: shutil.copy(source, copied) and ""),
            copied_whole=tried(lambda: shutil.copytree(folder, folder + "-2") and ""),
            touched=tried(touched),
            placed=tried(placed),
            renamed=tried(lambda: os.rename(copied, copied + "c")),
            linked=tried(lambda: os.link(source, folder + "/d")),
            locked=tried(locked),
            limit=tried(lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0))),
            nice=tried(lambda: os.nice(1) * 0),
            cores=tried(lambda: os.sched_setaffinity(0, os.sched_getaffinity(0))),
            pair=tried(lambda: [one.close() for one in socket.socketpair()] and ""),
            datagrams=tried(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).close()),
            tcp=tried(lambda: socket.socket().close()),
            names=tried(lambda: socket.if_nameindex() and ""),
            memory=tried(lambda: os.close(os.memfd_create("x"))),
            child=tried(lambda: subprocess.run(["true"], check=True) and ""),
            worker=tried(worked),
        )
        """,
    )
    assert set(found.values()) == {""}, found


@filtered
def test_calls_by_other_numbers_are_not_a_way_around(ask):
    found = ask(
        "none",
        """
        import ctypes, errno, platform
        libc = ctypes.CDLL(None, use_errno=True)
        def call(number, *arguments):
            ctypes.set_errno(0)
            libc.syscall(ctypes.c_long(number), *arguments)
            return errno.errorcode.get(ctypes.get_errno(), "")
        keys = {"x86_64": 248, "aarch64": 217}[platform.machine()]
        sockets = {"x86_64": 41, "aarch64": 198}[platform.machine()]
        high = ctypes.c_long(1 << 32 | 2)  # the kernel reads a 2
        answer(
            new=[call(number, 0, 0, 0, 0, 0, 0) for number in (463, 469, 599)],
            x32=call(0x40000000 + keys, b"user", b"x", b"y", 1, -4),
            sockets=[call(sockets, high, high, 0), call(sockets, 2, high, 0)],
        )
        """,
    )
    # A newer libseccomp knows setxattrat, and then it fails as setxattr does.
    assert set(found["new"]) <= {"ENOSYS", "EPERM", "ENOTSUP", "EOPNOTSUPP"}
    assert found["x32"] == "ENOSYS"
    assert found["sockets"] == ["EPERM"] * 2


def test_a_loop_says_when_system_calls_are_not_filtered(monkeypatch):
    for level in isolation.LEVELS:
        monkeypatch.setenv(seccomp.SWITCH, "0")
        assert "system calls are not filtered" in isolation.Chosen(level, "").warning
        assert isolation.Chosen(level, "").closes_ports is (level == "bwrap")
        assert isolation.wrap("none", ["true"], Sandbox(Path("/"))) == ["true"]
        monkeypatch.delenv(seccomp.SWITCH)
        filters = not seccomp.unavailable()
        assert ("not filtered" in isolation.Chosen(level, "").warning) is not filters
        closed = level == "bwrap" or (level == "landlock" and filters and landlock.abi() >= 4)
        assert isolation.Chosen(level, "").closes_ports is closed


def test_without_libseccomp_the_filter_is_reported_as_missing(monkeypatch):
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    monkeypatch.delitem(sys.modules, "pyseccomp", raising=False)
    monkeypatch.setattr(seccomp, "_filter", seccomp._filter.__wrapped__)
    monkeypatch.setattr(seccomp, "_lacking", seccomp._lacking.__wrapped__)
    assert "libseccomp" in seccomp.unavailable()
    assert seccomp.described() == "no seccomp"


# ------------------------------------------------------------------------- root, and other names


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can read what others cannot")
@pytest.mark.parametrize("level", BOXES)
@pytest.mark.parametrize("everything", [False, True])
def test_what_root_alone_may_read_is_hidden(ask, level, everything, tmp_path, monkeypatch):
    etc = make(tmp_path / "etc", "public", "shadow", "keys/private", "deep/er/secret", "named/own")
    etc.joinpath("shadow").chmod(0o640)
    etc.joinpath("keys").chmod(0o710)
    etc.joinpath("deep/er/secret").chmod(0o600)
    others = make(tmp_path / "others", "file") / "file"
    others.chmod(0o600)
    os.chown(others, 65534, 65534)
    home = make(tmp_path / "root", ".ssh/id", ".config/login")
    (etc / "named").chmod(0o700)
    (etc / "named" / "own").chmod(0o600)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setitem(hidden.PRIVATE_ROOTS, str(etc), 3)
    monkeypatch.setattr(isolation, "SYSTEM", (*isolation.SYSTEM, str(etc)))
    names = ("public", "shadow", "keys/private", "deep/er/secret", "named/own")
    found = ask(
        level,
        f"""
        answer(
            etc=[name for name in {names!r}
                 if read({str(etc)!r} + "/" + name) == name.split("/")[-1]],
            shadow=[len(read(path)) for path in ("/etc/shadow", "/etc/gshadow")
                    if read(path) not in ("", "PermissionError", "FileNotFoundError")],
            other=read({str(others)!r}),
            home=[read({str(home)!r} + name) for name in ("/.ssh/id", "/.config/login")],
        )
        """,
        everything=everything,
        readable=(etc / "named", tmp_path / "others", home / ".config"),
    )
    assert found["etc"] == ["public", "named/own"]
    assert found["shadow"] == []
    assert found["other"] == "PermissionError"
    assert found["home"][0] in ("PermissionError", "FileNotFoundError")
    assert found["home"][1] == "login"


@pytest.fixture
def bind(tmp_path):
    """Show a folder a second time, and no longer after the test."""
    mounted = []

    def bind(folder, name, *options):
        (again := tmp_path / name).mkdir(parents=True)
        command = ["mount", *(options or ("--bind",)), folder, again]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr}")
        mounted.append(again)
        return again

    yield bind
    for again in reversed(mounted):
        subprocess.run(["umount", again], check=True)


@pytest.mark.parametrize("level", BOXES)
@pytest.mark.parametrize("everything", [False, True])
def test_a_bind_mount_does_not_show_what_is_hidden(ask, level, everything, tmp_path, bind):
    data = make(tmp_path / "data", "train", "held-out", "state/kept", "state/more/kept")
    again = bind(data, "again and again")
    part = bind(data / "state" / "more", "seen/part")
    found = ask(
        level,
        f"""
        from pathlib import Path
        data, again, part = Path({str(data)!r}), Path({str(again)!r}), Path({str(part)!r})
        answer(
            seen=[read(folder / "train") for folder in (data, again)],
            hidden=[read(path) for folder in (data, again)
                    for path in (folder / "held-out", folder / "state/kept")],
            part=read(part / "kept"),
        )
        """,
        everything=everything,
        readable=(data, again, tmp_path / "seen"),
        hidden=(data / "held-out", data / "state"),
    )
    assert found["seen"] == ["train", "train"]
    assert set(found["hidden"]) <= {"", "PermissionError", "FileNotFoundError"}
    assert found["part"] in ("PermissionError", "FileNotFoundError")


@pytest.mark.parametrize("level", BOXES)
@pytest.mark.parametrize("shown", [False, True])
def test_an_overlay_does_not_show_what_is_hidden(ask, level, shown, tmp_path, bind):
    """Neither what is hidden in one of its layers, nor the layer of what is hidden in it."""
    below = make(tmp_path / "work" / "below", "seen", "held-out")
    empty = make(tmp_path / "work" / "empty", "other")
    above = bind("overlay", "work/above", "-t", "overlay", "-o", f"lowerdir={empty}:{below}")
    where = [above, below] if shown else [below, above]
    program = f"""
        answer(read=[read(folder + name) for folder in {[f"{one}/" for one in where]!r}
                     for name in ("seen", "held-out")])
        """
    found = ask(level, program, hidden=(where[0] / "held-out",))["read"]
    assert found[::2] == ["seen"] * 2
    assert set(found[1::2]) <= {"", "PermissionError"}


# ------------------------------------------------------------------------------------------ network


@pytest.fixture
def server():
    """Yield the port of a TCP server that says hello, and the name of an abstract socket."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        name = f"autoresearch-test-{os.getpid()}"
        abstract.bind("\0" + name)
        abstract.listen()

        def serve():
            while True:
                connection, _ = tcp.accept()
                with connection:
                    if connection.recv(4) == b"stop":
                        return
                    connection.sendall(b"hello")

        thread = threading.Thread(target=serve)
        thread.start()
        port = tcp.getsockname()[1]
        yield port, name
        with socket.create_connection(("127.0.0.1", port)) as last:
            last.sendall(b"stop")
        thread.join()


REACH = """
def hello():
    with socket.create_connection(("127.0.0.1", {port}), timeout=5) as connection:
        connection.sendall(b"ask.")
        return connection.recv(5).decode()

def abstract():
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect("\\0{name}")
    return "reached"

def listen():
    socket.create_server(("", 0)).close()
    return "yes"

def fast():
    with socket.socket() as connection:
        connection.sendto(b"ask.", 1 << 29, ("127.0.0.1", {port}))  # MSG_FASTOPEN
        return connection.recv(5).decode()

answer(tcp=tried(hello), fast=tried(fast), abstract=tried(abstract), listens=tried(listen),
       name=tried(lambda: open("/etc/resolv.conf").read() and "resolvable"))
"""


@pytest.mark.parametrize("level", BOXES)
def test_only_agents_have_network_access(ask, level, server):
    port, name = server
    program = REACH.format(port=port, name=name)
    for everything in (False, True):
        found = ask(level, program, network=True, everything=everything)
        assert found["tcp"] == "hello"
        assert found["name"] == ("resolvable" if Path("/etc/resolv.conf").exists() else "")
    if level == "landlock" and landlock.abi() < 4:
        pytest.skip("this kernel's Landlock cannot deny TCP")
    found = ask(level, program)
    assert found["tcp"] == {"landlock": "PermissionError", "bwrap": "ConnectionRefusedError"}[level]
    if not seccomp.unavailable():
        assert found["fast"] == "PermissionError"
    assert found["listens"] == {"landlock": "PermissionError", "bwrap": "yes"}[level]
    if level == "bwrap" or landlock.abi() >= 6:
        assert found["abstract"] in ("PermissionError", "ConnectionRefusedError")


# ------------------------------------------------------------------------------ processes, secrets


@pytest.mark.parametrize("level", BOXES)
def test_processes_outside_are_out_of_reach(ask, level):
    if level == "landlock" and landlock.abi() < 6:
        pytest.skip("this kernel's Landlock cannot deny signals")
    found = ask(
        level,
        f"""
        import signal, subprocess
        here = {os.getpid()}
        child = subprocess.Popen(["sleep", "60"])
        child.terminate()
        answer(
            harness=tried(lambda: os.kill(here, 0) or "reached"),
            supervisor=tried(lambda: os.kill(os.getppid(), 0) or "reached"),
            child=child.wait(),
            processes=len([name for name in os.listdir("/proc") if name.isdigit()]),
            environ=tried(lambda: open(f"/proc/{{here}}/environ").read()),
            memory=tried(lambda: open(f"/proc/{{here}}/mem", "rb").read(1) and "read"),
        )
        """,
    )
    processes = found.pop("processes")
    assert level == "landlock" or processes == 2  # bwrap's and the command's own
    assert found.pop("child") == -signal.SIGTERM
    if level == "bwrap":
        del found["supervisor"]  # its parent is the init of its own processes
    assert set(found.values()) <= {"PermissionError", "ProcessLookupError", "FileNotFoundError"}


@pytest.mark.parametrize("level", EVERY)
def test_secrets_stay_outside(ask, level):
    secrets = {
        "OPENAI_API_KEY": "s3cret",
        "HF_TOKEN": "s3cret",
        "JAX_TOKEN": "s3cret",
        "XLA_API_Key": "s3cret",
        "MY_DATABASE": "s3cret",
        "SSH_AUTH_SOCK": "s3cret",
        "XDG_CONFIG_HOME": "s3cret",
    }
    harmless = {
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_dump_hlo_as_text",
        "CUDA_VISIBLE_DEVICES": "1",
        "TPU_WORKER_ID": "0",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "OMP_NUM_THREADS": "1",
        "AUTORESEARCH_SEED": "42",
        "PYTHONHASHSEED": "7",
        "LD_LIBRARY_PATH": "/usr/lib",
        "PATH": os.environ["PATH"],
    }
    found = ask(
        level,
        """
        parents = [read(f"/proc/{pid}/environ") for pid in (os.getppid(), "self", 1)]
        answer(environment=dict(os.environ), leaked="s3cret" in "".join(parents))
        """,
        given=harmless | secrets,
    )
    assert found["leaked"] is False
    assert found["environment"].items() >= harmless.items()
    assert not secrets.keys() & found["environment"].keys()


def test_packages_of_the_user_are_still_found(monkeypatch, tmp_path):
    folder = tmp_path / "lib"
    folder.mkdir()
    monkeypatch.setattr(isolation.site, "ENABLE_USER_SITE", True)
    monkeypatch.setattr(isolation.site, "getusersitepackages", lambda: str(folder))
    monkeypatch.setattr(isolation.site, "getuserbase", lambda: str(tmp_path))
    assert "PYTHONUSERBASE" not in isolation.environment({}, tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    assert isolation.environment({}, tmp_path)["PYTHONUSERBASE"] == str(tmp_path)
    assert folder in isolation._readable(Sandbox(scratch=tmp_path))


def test_this_package_is_readable_also_where_it_is_developed(monkeypatch, tmp_path):
    package = Path(isolation.__file__).parents[1]
    monkeypatch.chdir(package.parent)
    assert package in isolation._readable(Sandbox(scratch=tmp_path))


# -------------------------------------------------------------------- the same as without a sandbox


@pytest.mark.parametrize("level", BOXES)
def test_jax_computes_inside(ask, level):
    program = """
        import jax, jax.numpy as jnp
        x = jax.jit(lambda x: (x @ x).sum())(jnp.ones((8, 8)))
        answer(sum=float(x), package=__import__("autoresearch_jax").__name__)
        """
    given = os.environ | {"JAX_PLATFORMS": "cpu"}
    assert ask(level, program, given=given) == {"sum": 512.0, "package": "autoresearch_jax"}


@pytest.mark.parametrize("level", BOXES)
@pytest.mark.parametrize(("command", "returncode"), [("exit 3", 3), ("kill -SEGV $$", -11)])
def test_its_exit_status_is_known(run, level, command, returncode):
    ended = run(level, ["/bin/sh", "-c", command])
    assert isolation.signal_of(level, ended.returncode) == returncode


@pytest.mark.parametrize("level", BOXES)
def test_a_command_that_does_not_exist_is_named(run, level, tmp_path):
    assert run(level, ["no-such-command"]).returncode > 0
    assert "no-such-command" in (tmp_path / "out").read_text()


@pytest.mark.parametrize("level", BOXES)
@pytest.mark.parametrize("stays", [False, True])
def test_a_daemon_inside_is_gone_afterwards(run, level, stays, tmp_path):
    started = tmp_path / "run" / "started"
    started.parent.mkdir()
    mark = f"autoresearch-{tmp_path.name}-{os.getpid()}"  # pids inside are others
    ended = run(
        level,
        f"""
        import signal, subprocess, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                subprocess.Popen(["sleep", "600.5"], env={{"MARK": {mark!r}}})
                write({str(started)!r})
                time.sleep(600)
            os._exit(0)
        while not os.path.exists({str(started)!r}):
            time.sleep(0.01)
        if {stays}:
            time.sleep(600)
        """,
        writable=(started.parent,),
        abandoned=started.exists if stays else lambda: False,
    )
    assert ended.why == ("abandoned" if stays else "exit")
    assert not carrying(mark)


def carrying(mark):
    """Return the processes whose environment contains a word."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(folder.name)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("level", BOXES)
def test_a_killed_harness_leaves_no_process(level, tmp_path):
    scratch = isolation.fresh(tmp_path / "scratch")
    argv = isolation.wrap(level, ["/bin/sh", "-c", "echo $$ > pid; sleep 600"], Sandbox(scratch))
    mark = f"autoresearch-{tmp_path.name}-{os.getpid()}"
    harness = f"""
        from pathlib import Path
        from autoresearch_jax.system import process
        process.Running({argv!r}, cwd=Path({str(scratch)!r}), env={{"MARK": {mark!r}}},
                        stdout=Path({str(tmp_path / "out")!r})).wait(limit_s=60)
        """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(harness)]) as killed:
        wait_for((scratch / "pid").exists)
        killed.kill()
    wait_for(lambda: not carrying(mark))


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ------------------------------------------------------------------------------- older kernels


@pytest.mark.skipif(not landlock.abi(), reason=why_not("landlock") or "-")
@pytest.mark.parametrize("version", [v for v in (1, 3, 6) if v <= landlock.abi()])
def test_older_versions_of_landlock_restrict_what_they_can(version, tmp_path):
    scratch = isolation.fresh(tmp_path / "scratch")
    make(tmp_path, "hidden", "data/train", "data/validation")
    sandbox = Sandbox(
        scratch, readable=(tmp_path / "data",), hidden=(tmp_path / "data" / "validation",)
    )
    spec = json.dumps(isolation._landlock(sandbox) | {"abi": version})
    program = f"""
        import signal
        os.chdir({str(tmp_path)!r})
        os.rename({str(scratch / "home")!r}, {str(scratch / "moved")!r})
        new, there = {str(scratch / "new")!r}, {str(scratch / "tmp" / "new")!r}
        answer(seen=read("data/train"), hidden=[read("hidden"), read("data/validation")],
               kept=write(new), null=write("/dev/null"), moved=tried(lambda: os.rename(new, there)),
               truncated=tried(lambda: os.truncate("hidden", 0) or "yes"),
               signals=tried(lambda: os.kill({os.getpid()}, 0) or "yes"))
        """
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(program)]
    command = [sys.executable, "-I", "-S", landlock.__file__, spec, *command]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "seen": "train",
        "hidden": ["PermissionError"] * 2,
        "kept": "written",
        "null": "written",
        "moved": "" if version >= 2 else "OSError",
        "truncated": "PermissionError" if version >= 3 else "yes",
        "signals": "PermissionError" if version >= 6 else "yes",
    }


@pytest.mark.parametrize("level", BOXES)
def test_threads_can_have_names(ask, level):
    """CUDA names its threads when it starts. If it cannot, JAX does not find the GPU."""
    found = ask(
        level,
        """
        import threading
        def name():
            place = f"/proc/self/task/{threading.get_native_id()}/comm"
            with open(place, "w") as file:
                file.write("cuda")
            return open(place).read().strip()
        names = []
        thread = threading.Thread(target=lambda: names.append(tried(name)))
        thread.start()
        thread.join()
        answer(names=names)
        """,
    )
    assert found == {"names": ["cuda"]}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has the capabilities that a sandbox drops")
@pytest.mark.parametrize("level", BOXES)
def test_root_cannot_leave_the_sandbox(ask, level, tmp_path):
    found = ask(
        level,
        """
        import ctypes, stat, subprocess
        libc = ctypes.CDLL(None, use_errno=True)
        device = os.stat("/").st_dev
        answer(
            unmounted=libc.umount2(b"/proc", 2),
            mounted=libc.mount(b"none", os.environ["HOME"].encode(), b"tmpfs", 0, None),
            node=tried(lambda: os.mknod("/dev/disk", 0o600 | stat.S_IFBLK, device) or "made"),
            node_at_home=tried(lambda: os.mknod(os.environ["HOME"] + "/disk", 0o600 | stat.S_IFBLK,
                                                device) or "made"),
            core=tried(lambda: open("/proc/sys/kernel/core_pattern", "r+").close() or "open"),
            irq=tried(lambda: open("/proc/irq/default_smp_affinity", "r+").close() or "open"),
            kernel=[
                name for name in os.listdir("/proc")
                if not name.isdigit() and not os.path.isdir(f"/proc/{name}")
                and os.stat(f"/proc/{name}").st_mode & 0o222
                and tried(lambda: open(f"/proc/{name}", "r+").close() or "open") == "open"
            ],
            capabilities=read("/proc/self/status").partition("CapEff:")[2].split()[0],
        )
        """,
    )
    assert int(found.pop("capabilities"), 16) & ~(1 << 14) == 0
    assert found["unmounted"] == found["mounted"] == -1
    assert found["kernel"] == []
    for name in ("node", "node_at_home", "core", "irq"):
        assert found[name] in ("PermissionError", "OSError")


# ---------------------------------------------------------------------------------- the choice


def trial(**failures):
    asked = []

    def trial(level):
        asked.append(level)
        return failures.get(level, "")

    trial.asked = asked
    return trial


def test_auto_chooses_the_strongest_level_that_works(monkeypatch):
    assert isolation.strongest("auto", None, trial()) == isolation.Chosen("bwrap", "")
    works = trial(bwrap="bwrap: No permissions to create new namespace.\n")
    chosen = isolation.strongest("auto", None, works)
    assert works.asked == ["bwrap", "landlock"]
    assert chosen.level == "landlock"
    assert chosen.why == "bwrap: bwrap: No permissions to create new namespace"
    for version, warning in ((7, ""), (5, "sending signals"), (1, "emptying any .* network, send")):
        monkeypatch.setattr(landlock, "abi", lambda version=version: version)
        assert bool(chosen.warning) is bool(warning)
        if warning:
            assert re.search(warning, chosen.warning)
    chosen = isolation.strongest("auto", None, trial(bwrap="no user namespaces", landlock="none"))
    assert chosen.level == "none"
    assert "no sandbox is active" in chosen.warning
    assert "(bwrap: no user namespaces; landlock: none)" in chosen.warning
    assert isolation.strongest("none", None, trial()).warning == isolation.UNPROTECTED


def test_a_named_level_must_work():
    assert isolation.strongest("landlock", None, trial(bwrap="no")).level == "landlock"
    with pytest.raises(
        UserError, match=r"bwrap does not .*: no\. .*apt install bub.* --isolation auto"
    ):
        isolation.strongest("bwrap", None, trial(bwrap="no."))


def test_a_required_level_is_reached_or_refused():
    assert isolation.strongest("auto", "landlock", trial(bwrap="no")).level == "landlock"
    assert isolation.strongest("bwrap", "landlock", trial()).level == "bwrap"
    with pytest.raises(UserError, match=r"landlock or better .*bwrap .*: no\. landlock .*: old"):
        isolation.strongest("auto", "landlock", trial(bwrap="no", landlock="old"))
    with pytest.raises(
        UserError, match=r"--isolation none is weaker than --require-isolation bwrap"
    ):
        isolation.strongest("none", "bwrap", trial())


def test_an_unavailable_level_is_known_without_a_trial(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert isolation.unavailable("bwrap") == "bwrap is not in PATH"
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    assert isolation.unavailable("landlock") == "this kernel has no Landlock, or it is switched off"
    assert isolation.unavailable("none") == ""
    monkeypatch.undo()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert landlock.abi() == 0
    assert isolation.unavailable("bwrap")
