from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from kdbench.base import store as cache
from kdbench.base.store import Store, default_root, write_atomic
from kdbench.errors import KDBenchError

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 60  # seconds until a process that hangs fails its test


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def maker(**manifest: Any) -> Callable[[Path], dict[str, Any]]:
    def make(work: Path) -> dict[str, Any]:
        (work / "model.bin").write_bytes(b"weights")
        return manifest

    return make


def never(work: Path) -> dict[str, Any]:
    raise AssertionError("was made again")


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a Python process that runs ``code`` with the arguments in ``sys.argv``."""
    processes: list[subprocess.Popen[str]] = []

    def run(code: str, *arguments: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", code, *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def test_a_product_is_made_once_and_then_reused(store: Store) -> None:
    first = store.product("teacher", "k1", maker(score=0.5, sizes=(1, 2)))
    assert first.fresh
    assert first.path == store.root / "teacher" / "k1"
    assert (first.path / "model.bin").read_bytes() == b"weights"
    assert first.manifest["score"] == 0.5
    assert first.manifest["key"] == "k1"
    assert {"created", "kdbench"} <= set(first.manifest)
    again = store.product("teacher", "k1", never)
    assert not again.fresh
    assert again.manifest == first.manifest == json.loads((first.path / "manifest.json").read_text())
    assert store.find("teacher", "k1") == again
    assert store.find("teacher", "k2") is None
    assert store.find("student", "k1") is None
    assert store.product("teacher", "k2", maker()).fresh


def test_a_reused_product_needs_no_write_access(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.product("teacher", "k", maker())

    def locked(*_: Any, **__: Any) -> None:
        raise AssertionError("took a lock")

    monkeypatch.setattr("kdbench.base.store.FileLock", locked)
    assert not store.product("teacher", "k", never).fresh


def test_scratch_files_do_not_stay(store: Store) -> None:
    def make(work: Path) -> dict[str, Any]:
        (work / "scratch").mkdir()
        (work / "scratch" / "last.ckpt").write_text("epoch 3")
        (work / "nested" / "scratch").mkdir(parents=True)
        return {}

    product = store.product("teacher", "k", make)
    assert sorted(path.name for path in product.path.iterdir()) == ["manifest.json", "nested"]
    assert (product.path / "nested" / "scratch").is_dir()


def test_a_maker_that_fails_keeps_its_work_and_frees_the_lock(store: Store) -> None:
    def fail(work: Path) -> dict[str, Any]:
        (work / "last.ckpt").write_text("epoch 1")
        raise RuntimeError("diverged")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="diverged"):
            store.product("teacher", "k", fail)
        assert store.find("teacher", "k") is None

    def resume(work: Path) -> dict[str, Any]:
        return {"found": (work / "last.ckpt").read_text()}

    assert store.product("teacher", "k", resume).manifest["found"] == "epoch 1"
    assert not (store.root / "teacher" / "k.work").exists()


@pytest.mark.parametrize("text", ["", '{"kind": "teacher", "ke', "[]", '{"kind": "teacher", "key": "another"}', None])
def test_a_product_without_a_whole_manifest_is_made_again(
    store: Store, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    folder = store.product("teacher", "k", maker(score=1)).path
    (folder / "stale.bin").write_bytes(b"")
    if text is None:
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_text(text)
    assert store.find("teacher", "k") is None
    with caplog.at_level(logging.WARNING):
        product = store.product("teacher", "k", maker(score=2))
    assert [str(folder) in record.getMessage() for record in caplog.records] == [True]
    assert (product.fresh, product.manifest["score"]) == (True, 2)
    assert not (folder / "stale.bin").exists()


def test_a_maker_killed_after_its_manifest_has_finished(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            store.product("teacher", "k", maker(score=1))
    assert store.find("teacher", "k") is None
    product = store.product("teacher", "k", never)
    assert (product.fresh, product.manifest["score"]) == (False, 1)
    assert (product.path / "model.bin").exists()


def test_the_manifest_is_json_without_nan(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    product = store.product("teacher", "k", maker(score=float("nan"), nested={"loss": [float("inf"), 1.0]}))
    text = (product.path / "manifest.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert product.manifest["score"] is None
    assert product.manifest["nested"] == {"loss": [None, 1.0]}
    assert "score, nested.loss.0" in caplog.text
    with pytest.raises(KDBenchError, match="manifest of teacher k2 is not JSON"):
        store.product("teacher", "k2", maker(path=Path("x")))
    assert store.find("teacher", "k2") is None


@pytest.mark.parametrize(
    ("kind", "key"), [("teacher", "../x"), ("a/b", "k"), ("", "k"), ("teacher", "k.work"), ("locks", "k")]
)
def test_names_that_are_not_plain_are_refused(store: Store, kind: str, key: str) -> None:
    with pytest.raises(KDBenchError, match="no product can be called"):
        store.product(kind, key, never)


def test_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "here"))
    assert default_root() == Store().root == tmp_path / "here"
    monkeypatch.delenv("KDBENCH_CACHE")
    assert default_root() == platformdirs.user_cache_path("kdbench", appauthor=False)


def test_a_user_without_a_home_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KDBENCH_CACHE", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(KDBenchError, match="no home folder for the cache: set cache=DIR or KDBENCH_CACHE"):
        default_root()


def test_a_product_of_another_user_is_one_line_and_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = store.product("teacher", "k", maker(epochs=3))

    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(
            KDBenchError, match=rf"cannot read {made.path} of the cache \(Permission denied\): set cache="
        ):
            store.product("teacher", "k", never)
    assert store.product("teacher", "k", never).path == made.path


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KDBenchError, match=r"cannot write the cache folder .*file.* set cache=DIR"):
        Store(tmp_path / "file").product("teacher", "k", never)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device without space")
def test_a_full_disk_is_one_line_and_leaves_no_product(store: Store) -> None:
    def fill(work: Path) -> dict[str, Any]:
        Path("/dev/full").write_bytes(b"x")
        return {}

    with pytest.raises(KDBenchError, match=r"no space left to write below .*cache \([\d.]+ MiB free\)"):
        store.product("teacher", "k", fill)
    assert store.find("teacher", "k") is None
    assert store.product("teacher", "k", maker()).fresh


def test_write_atomic_replaces_a_file_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, "é")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KDBenchError, match=f"no space left to write below {tmp_path}"):
        write_atomic(path, "lost")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


ONCE = """
import json, sys, time
from pathlib import Path
from kdbench.base.store import Store

def make(work):
    with open(sys.argv[2], "a") as calls:
        calls.write("x")
    time.sleep(2)
    (work / "model.bin").write_bytes(b"weights")
    return {"score": 0.25}

product = Store(Path(sys.argv[1])).product("teacher", "k", make)
print(json.dumps([product.fresh, product.manifest["score"], (product.path / "model.bin").read_text()]))
"""


def test_sixteen_processes_make_a_product_once(
    store: Store, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    processes = [start(ONCE, store.root, tmp_path / "calls") for _ in range(16)]
    results = [json.loads(process.communicate(timeout=LIMIT)[0]) for process in processes]
    assert (tmp_path / "calls").read_text() == "x"
    assert sorted(results) == [[False, 0.25, "weights"]] * 15 + [[True, 0.25, "weights"]]


# The child inherits the descriptor of the lock, as a data loader's worker does, and outlives its parent.
HOLD = """
import os, sys, time
from pathlib import Path
from kdbench.base.store import Store

def make(work):
    (work / "last.ckpt").write_text("epoch 3")
    if "fork" in sys.argv:
        child = os.fork()
        if child == 0:
            os.closerange(0, 3)
            time.sleep(120)
            os._exit(0)
        print(child)
    print("inside")
    time.sleep(120)

Store(Path(sys.argv[1])).product("teacher", "held", make)
"""

RESUME = """
import sys
from pathlib import Path
from kdbench.base.store import Store

make = lambda work: {"found": (work / "last.ckpt").read_text()}
product = Store(Path(sys.argv[1])).product("teacher", "held", make, wait_message="the teacher")
print(product.fresh, product.manifest["found"])
"""


def test_another_process_takes_over_from_a_killed_one(
    store: Store, start: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = start(HOLD, store.root, "fork")
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        assert holder.stdout.readline() == "inside\n"
        waiter = start(RESUME, store.root)
        assert waiter.stderr is not None
        said = waiter.stderr.readline()
        assert said.startswith(f"waiting for the teacher, held by process {holder.pid} on ")
        holder.kill()
        holder.wait()
        assert store.find("teacher", "held") is None  # killed inside make: no product
        out, rest = waiter.communicate(timeout=LIMIT)
        assert out == "True epoch 3\n"
        assert rest == ""  # the wait is told once
        os.kill(child, 0)  # it still lives, so it was not its end that freed the lock
    finally:
        os.kill(child, signal.SIGKILL)
    assert store.find("teacher", "held") is not None


def test_an_earlier_product_is_made_again_and_read_until_the_new_one_is_whole(tmp_path):
    store, later = Store(tmp_path), datetime.now(UTC) + timedelta(hours=1)
    store.product("model", "k", lambda work: {"made": 1})

    def made() -> Any:
        found = store.find("model", "k")
        assert found is not None
        return found.manifest["made"]

    def again(work: Path) -> dict[str, Any]:
        assert made() == 1
        return {"made": 2}

    assert store.product("model", "k", again, since=datetime.now(UTC) - timedelta(hours=1)).manifest["made"] == 1
    assert store.product("model", "k", again, since=later).manifest["made"] == 2
    assert made() == 2
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["k"]


def test_what_is_found_in_files_is_kept_while_they_stay_as_they_are(tmp_path, monkeypatch):
    path, store = tmp_path / "a.bin", Store(tmp_path / "cache")
    path.write_bytes(b"one")
    asked: list[bytes] = []

    def found(code: str = "") -> str:
        def read() -> dict[str, str]:
            asked.append(path.read_bytes())
            return {"text": path.read_text()}

        return str(store.of_files("texts", [path], read, code=code)["text"])

    assert [found(), found()] == ["one", "one"]
    assert len(asked) == 2  # it has just changed, and might again within the same tick
    monkeypatch.setattr(cache, "UNSETTLED", 0)
    assert [found(), found()] == ["one", "one"]
    assert len(asked) == 3
    assert found("other code") == "one"
    assert len(asked) == 4
    times = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert found() == "two"
    path.unlink()
    with pytest.raises(KDBenchError, match=r"a.bin: cannot be read \(No such file or directory\)$"):
        found()
