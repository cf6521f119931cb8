"""What the tests of the W&B mirror look into: a record, a stand-in server on the loopback, a reader of offline runs."""

from __future__ import annotations

import gzip
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from PIL import Image
from wandb.proto import wandb_internal_pb2 as protocol

from kdbench.mirror.wandb_run import CONTENT, STEP, RunInfo, teacher_hash
from kdbench.records.provenance import provenance
from kdbench.records.record import read_record, write_record
from kdbench.records.schema import Record

BLOCK = 32 * 1024
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


CONFIG: dict[str, Any] = {
    "task": {"name": "toy", "classes": ["Car", "Cyclist"]},
    "data": {"name": "toy", "root": "/here"},
    "method": {"name": "kd", "_target_": "kdbench.methods.kd.KD"},
    "pair": {"name": "small", "teacher": {"architecture": {"width": 8}}},
    "preset": {"name": "smoke"},
    "trainer": {"epochs": 2, "threads": None},
    "teacher": {"seed": 0, "init_from": None, "trainer": {"epochs": 3}, "data": {}},
    "role": None,
    "seed": 3,
    "factors": [0.1, 0.2],
}
RUN = RunInfo.of(CONFIG, run_id="r1", spec_hash="abc123", directions={"val/acc": True, "val/loss": False})


def made(folder: Path, **changes: Any) -> tuple[Record, Path]:
    """A record of ``CONFIG`` with its files."""
    test = {"acc": 0.25, "car_ap": 0.5, "cyclist_ap": 0.125}
    scores = {"teacher": {"test": {"acc": 0.75}}, "scratch": {"test": {"acc": 0.125}}, "student": {"test": test}}
    fields: dict[str, Any] = {
        "run_id": "r1",
        "spec_hash": "abc123",
        "code_digest": "c",
        "status": "ok",
        "task": "toy",
        "method": "kd",
        "pair": "small",
        "preset": "smoke",
        "seed": 3,
        "fidelity": "equations",
        "origin": "measured",
        "command": "python -m kdbench",
        "dataset": {"name": "toy", "embedded": True, "digest": "d", "sizes": {"train": 1, "val": 1, "test": 1}},
        "primary": {"name": "acc", "higher_is_better": True},
        "scores": scores,
        "gap_closed": 0.2,
        "cost": {"epochs": 2, "samples_seen": 8},
        "provenance": provenance("", datetime.now(UTC)),
    }
    picture = folder / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    files: dict[str, Any] = {
        "config.yaml": yaml.safe_dump(CONFIG),
        "metrics.csv": "epoch,step,train/task,val/acc\n0,4,1.5,0.1\n1,8,1.0,0.9\n2,12,0.5,0.3\n",
        "preview.png": picture,
    }
    path = write_record(folder / "results", Record.model_validate(fields | changes), files)
    return read_record(path), path


@dataclass
class OfflineRun:
    """The content of one offline run."""

    id: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None


def read_offline(path: Path) -> OfflineRun:
    """Reads a ``.wandb`` file: a 7-byte header, then LevelDB's log format with protobuf records."""
    run = OfflineRun()
    for payload in _payloads(path.read_bytes()):
        record = protocol.Record.FromString(payload)  # type: ignore[attr-defined]
        kind = record.WhichOneof("record_type")
        if kind == "run":
            sent = record.run
            run.id, run.name, run.group = sent.run_id, sent.display_name, sent.run_group
            run.job_type, run.tags = sent.job_type, tuple(sent.tags)
            run.config.update(_items(sent.config.update))
        elif kind == "history":
            run.history.append(_items(record.history.item))
        elif kind == "summary":
            run.summary.update(_items(record.summary.update))
        elif kind == "metric":
            run.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "artifact":
            run.artifacts[record.artifact.name] = record.artifact.type
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _payloads(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B"
    position, parts = 7, b""
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:  # a block's tail too short for a header is padding
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += 7
        parts += data[position : position + length]
        position += length
        if kind in (FULL, LAST):
            yield parts
            parts = b""


@dataclass
class Received:
    """What the stand-in server was sent, by run id; once ``closed`` is set, it drops every connection."""

    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    summary: dict[str, dict[str, Any]] = field(default_factory=dict)
    exit_codes: dict[str, int] = field(default_factory=dict)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    closed: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serve() -> Iterator[tuple[str, Received]]:
    """Runs a stand-in for the W&B server, which knows the runs it was sent; yields its address and what it receives."""
    received = Received()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"received": received}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """wandb-core drops its connections when it ends."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    received: Received

    def parse_request(self) -> bool:
        self.close_connection = self.received.closed.is_set()
        return not self.close_connection and super().parse_request()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        self.received.uploads[self.path] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/graphql":
            request = json.loads(body)
            self._answer({"data": self._graphql(request["query"], request.get("variables") or {})})
            return
        if self.path.endswith("/file_stream"):
            self._stream(self.path.split("/")[-2], json.loads(body))
        self._answer({})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, run: str, sent: dict[str, Any]) -> None:
        files = sent.get("files") or {}
        rows = files.get("wandb-history.jsonl", {}).get("content", [])
        self.received.history.setdefault(run, []).extend(json.loads(row) for row in rows)
        for summary in files.get("wandb-summary.json", {}).get("content", []):
            self.received.summary[run] = json.loads(summary)
        if sent.get("complete"):
            self.received.exit_codes[run] = sent["exitcode"]

    def _bucket(self, name: str) -> dict[str, Any]:
        """A run as it is told to a client that resumes it."""
        history = self.received.history.get(name, [])
        return {
            "id": "bucket",
            "name": name,
            "displayName": self.received.runs[name]["displayName"],
            "summaryMetrics": json.dumps(self.received.summary.get(name, {})),
            "historyLineCount": len(history),
            "historyTail": json.dumps([json.dumps(row) for row in history[-1:]]),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "config": self.received.runs[name]["config"],
            "tags": self.received.runs[name]["tags"],
            "wandbConfig": '{"t": 1}',
        }

    def _graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Answers by the operation's name; wandb-core dies of a missing answer, so these are what it really asks."""
        operation = query.split("(")[0].split("{")[0].split()[-1]
        sent = variables.get("input") or variables
        address = f"http://{self.headers['Host']}/upload"
        match operation:
            case "Viewer":
                viewer = {"id": "v", "entity": "tester", "username": "tester", "flags": "{}", "teams": {"edges": []}}
                return {"viewer": viewer}
            case "UpsertBucket":
                run = self.received.runs.setdefault(sent["name"], {})
                run.update({key: value for key, value in sent.items() if value is not None})
                project = {"name": run["project"], "entity": {"name": "tester"}}
                bucket = {"id": "bucket", "name": sent["name"], "displayName": run["displayName"], "project": project}
                return {"upsertBucket": {"bucket": bucket, "inserted": True}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{address}/{name}"} for name in sent["files"]]
                return {"createRunFiles": {"runID": "bucket", "uploadHeaders": [], "files": files}}
            case "CreateArtifact":
                self.received.artifacts.append(sent)
                sequence = {"id": "sequence", "latestArtifact": None}
                artifact = {"id": "artifact", "state": "PENDING", "artifactSequence": sequence}
                return {"createArtifact": {"artifact": artifact}}
            case "CreateArtifactManifest":
                file = {"id": "file", "uploadUrl": f"{address}/manifest", "uploadHeaders": []}
                return {"createArtifactManifest": {"artifactManifest": {"id": "manifest", "file": file}}}
            case "CreateArtifactFiles":
                rest: dict[str, Any] = {
                    "uploadHeaders": [],
                    "uploadMultipartUrls": None,
                    "artifact": {"id": "artifact"},
                }
                names = [file["name"] for file in sent["artifactFiles"]]
                nodes = [{"name": name, "storagePath": name, "uploadUrl": f"{address}/{name}"} | rest for name in names]
                return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
            case "CommitArtifact":
                return {"commitArtifact": {"artifact": {"id": "artifact", "digest": "digest"}}}
            case "RunResumeStatus" if sent["name"] in self.received.runs:
                return {"model": {"id": "project", "name": sent["project"], "bucket": self._bucket(sent["name"])}}
            case _:  # ServerFeaturesQuery, …: nothing there yet
                return {"model": None, "serverInfo": {"features": []}, "project": None}


@contextmanager
def no_account(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B without anything of the machine's user, and with nothing left over for the next test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = folder / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(home))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    wandb.teardown()
    yield
    wandb.teardown()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scores_sent(received: Received) -> list[tuple[int, float]]:
    return [(row[STEP], row["val/acc"]) for row in received.history["r1"] if "val/acc" in row]


def assert_whole(received: Received, record: Record, path: Path) -> None:
    """All of a record is on the server, once."""
    sent = received.runs["r1"]
    assert (sent["displayName"], sent["groupName"], sent["jobType"]) == ("toy/kd/small/s3", "abc123", "distill")
    assert set(sent["tags"]) == set(RUN.tags)
    assert json.loads(sent["config"])["task"]["value"] == CONFIG["task"]
    assert json.loads(sent["config"])["teacher_hash"]["value"] == teacher_hash(CONFIG)
    assert scores_sent(received) == [(4, 0.1), (8, 0.9), (12, 0.3)]
    assert received.summary["r1"]["final/acc"] == 0.25
    assert received.summary["r1"]["val/acc"] == {"max": 0.9}
    assert received.summary["r1"][CONTENT] == record.content_hash
    assert received.exit_codes["r1"] == 0
    assert {artifact["artifactTypeName"] for artifact in received.artifacts} >= {"result", "run_table"}
    assert (path / "run.json").read_bytes() in received.uploads.values()
    assert any(body.startswith(b"\x89PNG") for body in received.uploads.values())


@contextmanager
def logged_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Received]:
    """A stand-in server to which this process has a key."""
    with serve() as (address, received):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield received
        wandb.teardown()
