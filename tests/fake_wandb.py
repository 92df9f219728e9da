"""As much of a W&B server as wandb asks for, on loopback: runs that can be resumed, and read back."""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fake_artifacts import ArtifactStore

KEY = "0123456789" * 4


@dataclass
class KeptRun:
    """What the server keeps of a run."""

    history: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)  # with what the run was opened last
    begun: dict[str, Any] = field(default_factory=dict)  # with what it was opened first
    openings: int = 0
    alerts: list[dict[str, Any]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    notes: str | None = None
    stopped: bool = False  # by a user, in the web interface
    exit_code: int | None = None

    def rows(self) -> list[dict[str, Any]]:
        """The history without W&B's own keys, which begin with _."""
        return [{name: value for name, value in row.items() if name[0] != "_"} for row in self.history]


class FakeServer(ThreadingHTTPServer):
    """Keeps runs by their id. `broken`: it answers 500; `rows_left`: it breaks once it has taken so many more rows;
    `unsettled`: how often it says that it has more rows than it shows, as a server does that has just taken some."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.runs: dict[str, KeptRun] = {}
        self.broken = False
        self.rows_left: int | None = None
        self.unsettled = 0
        self.artifacts = ArtifactStore()
        self.url = f"http://127.0.0.1:{self.server_port}"

    @property
    def run(self) -> KeptRun:
        """The one run that it knows."""
        (run,) = self.runs.values()
        return run

    def environment(self) -> dict[str, str]:
        """For a user who is logged in here."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "NO_PROXY": "*", "no_proxy": "*"}


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.reply()

    def do_PUT(self) -> None:
        self.reply()

    def reply(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        answer: dict[str, Any] = {}
        if self.path == "/graphql" and not self.server.broken:
            answer = {"data": self.query(json.loads(body))}
        elif self.path.endswith("/file_stream") and not self.server.broken:
            run = self.server.runs[self.path.split("/")[-2]]
            self.stream(run, json.loads(body))
            answer = {"stopped": run.stopped}
        is_artifact = self.path.startswith("/artifact/")
        refused = self.server.broken or (is_artifact and self.server.artifacts.is_full)
        if is_artifact and not refused:
            self.server.artifacts.put(self.path.removeprefix("/artifact/"), body)
        data = json.dumps(answer).encode()
        self.send_response(403 if refused and is_artifact else 500 if refused else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, run: KeptRun, sent: dict[str, Any]) -> None:
        """Takes rows at the place that they are meant for: what is sent once more, after a fault, is there once."""
        for name, chunk in sent.get("files", {}).items():
            lines = [json.loads(line) for line in chunk["content"]]
            if name == "wandb-history.jsonl":
                if self.server.rows_left is not None:
                    lines = lines[: self.server.rows_left]
                    self.server.rows_left -= len(lines)
                    self.server.broken = self.server.rows_left == 0
                assert chunk["offset"] <= len(run.history)
                run.history[chunk["offset"] : chunk["offset"] + len(lines)] = lines
            elif name == "wandb-summary.json":
                run.summary = lines[-1]
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]

    def query(self, asked: dict[str, Any]) -> dict[str, Any]:
        variables = asked.get("variables") or {}
        name = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])[1]
        project = {"id": "p1", "name": "p", "entity": {"id": "e1", "name": "team"}}
        if name in ("Viewer", "GetDefaultEntity"):
            return {"viewer": {"id": "u1", "entity": "team", "username": "me", "teams": {"edges": []}}}
        if name == "UpsertBucket":
            inserted = variables["name"] not in self.server.runs
            run = self.server.runs.setdefault(variables["name"], KeptRun())
            run.openings += 1
            run.asked, run.begun = variables, run.begun or variables
            run.tags, run.notes = variables["tags"] or run.tags, variables["notes"] or run.notes
            if variables["config"]:
                run.config = json.loads(variables["config"])
            bucket = {"id": "r1", "name": variables["name"], "displayName": variables["displayName"]}
            bucket |= {"description": "", "config": json.dumps(run.config), "sweepName": None, "project": project}
            return {"upsertBucket": {"bucket": bucket | {"historyLineCount": len(run.history)}, "inserted": inserted}}
        if (artifact := self.server.artifacts.answer(name, variables, self.server.url)) is not None:
            return artifact
        if name == "NotifyScriptableRunAlert":
            self.server.runs[variables["runName"]].alerts.append(variables)
            return {"notifyScriptableRunAlert": {"success": True}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.server.url}/upload/{file}"} for file in variables["files"]]
            return {"createRunFiles": {"runID": "r1", "uploadHeaders": [], "files": files}}
        found = self.server.runs.get(str(variables.get("runName") or variables.get("run") or variables.get("name")))
        if name == "RunResumeStatus":
            return {"model": {"id": "p1", "name": "p", "entity": project["entity"], "bucket": found and resumed(found)}}
        if name == "Run":
            return {"project": {"run": found and self.describe_error(found, variables["name"])}}
        if name == "RunHistoryKeys":
            return {"project": {"run": {"historyKeys": {"lastStep": self.last_step(found)}}}}
        if name == "RunParquetHistory":
            live = [{"_step": row["_step"]} for row in found.history]
            return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": live}}}}
        if name == "HistoryPage":
            wanted = range(variables["minStep"], variables["maxStep"])
            rows = [json.dumps(row) for row in found.history if row["_step"] in wanted]
            return {"project": {"run": {"history": rows}}}
        return {}

    def describe_error(self, run: KeptRun, name: str) -> dict[str, Any]:
        described = {"id": "r1", "name": name, "displayName": "n", "state": "finished", "projectId": 1, "tags": []}
        described |= {
            "config": json.dumps(run.config),
            "summaryMetrics": json.dumps(run.summary),
            "user": {"username": "me"},
        }
        return described | {"historyLineCount": len(run.history), "systemMetrics": "{}"}

    def last_step(self, run: KeptRun) -> int:
        if self.server.unsettled:
            self.server.unsettled -= 1
            return run.history[-1]["_step"] - 3
        return max((row["_step"] for row in run.history), default=-1)


def resumed(run: KeptRun) -> dict[str, Any]:
    """What a server tells whoever wants to go on with a run."""
    told = {"id": "r1", "name": "r", "displayName": "n", "config": json.dumps(run.config)}
    told |= {"tags": run.tags, "notes": run.notes}
    told |= {"summaryMetrics": json.dumps(run.summary), "wandbConfig": '{"t": 1}', "eventsTail": "[]"}
    told |= {"historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]])}
    return told | {"historyLineCount": len(run.history), "eventsLineCount": 0, "logLineCount": 0}


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
