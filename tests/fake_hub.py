"""As much of the Hub as huggingface_hub asks for, on loopback: repositories of models with commits, and read back.

Files are committed as git blobs or as LFS objects, by their names.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import ModelCard

TOKEN = "hf_PLANTED" + "0" * 27
OWNER = "me"
_LFS = (".safetensors", ".png", ".parquet")


@dataclass
class Repository:
    """What the server keeps of a repository: the files of each commit, the newest last."""

    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"*.png filter=lfs\n"}])
    messages: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    def sha(self, number: int = -1) -> str:
        return hashlib.sha1(f"commit {number % len(self.commits)}".encode()).hexdigest()

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The SHA and files of a revision; None if there is no such one."""
        if revision == "main":
            return self.sha(), self.files
        found = [number for number in range(len(self.commits)) if self.sha(number) == revision]
        return (revision, self.commits[found[0]]) if found else None


class FakeHub(ThreadingHTTPServer):
    """Keeps repositories by their id. `broken`: the status that it answers on a route (create, preupload, lfs, commit);
    `stalls`: routes on which it answers nothing."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.broken: dict[str, int] = {}
        self.stalls: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def environment(self, token: str = TOKEN) -> dict[str, str]:
        """For a user who is logged in here. LFS only: Xet needs a storage server of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": token,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "*",
            "no_proxy": "*",
        }


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.reply()

    do_HEAD = do_POST = do_PUT = do_GET

    def reply(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = urlsplit(self.path)
        path = unquote(parts.path).strip("/")
        self.query = parse_qs(parts.query)
        for pattern, answer in self.routes().items():
            if match := re.fullmatch(pattern, path):
                name = answer.__name__
                if name in self.server.stalls:
                    time.sleep(60)
                if name in self.server.broken:
                    return self.send(self.server.broken[name], {"error": "broken"})
                if name != "lfs" and self.headers.get("authorization") != f"Bearer {TOKEN}":
                    wrong = {"X-Error-Message": "Invalid credentials in Authorization header"}
                    return self.send(401, {"error": "Invalid username or password."}, wrong)
                return answer(**match.groupdict())
        self.missing("RepoNotFound")

    def routes(self) -> dict[str, Any]:
        repository = r"(?P<name>[\w.-]+/[\w.-]+)"
        model, revision = rf"api/models/{repository}", r"(?P<revision>[\w.-]+)"
        return {
            "api/repos/create": self.create,
            "api/validate-yaml": self.validate,
            rf"{model}/preupload/{revision}": self.preupload,
            rf"{model}/commit/{revision}": self.commit,
            rf"{model}/tree/{revision}(/(?P<folder>.+))?": self.tree,
            rf"{model}/paths-info/{revision}": self.paths,
            rf"{model}(/revision/{revision})?": self.info,
            rf"{repository}\.git/info/lfs/objects/batch": self.batch,
            r"lfs/(?P<oid>\w+)": self.lfs,
            rf"{repository}/resolve/{revision}/(?P<file>.+)": self.resolve,
        }

    def send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        given = {"content-type": "application/json", "content-length": str(len(data))} | (headers or {})
        for key, value in given.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def missing(self, code: str) -> None:
        self.send(404, {"error": "not found"}, {"X-Error-Code": code})

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        is_known = name in self.server.repositories
        self.server.repositories.setdefault(name, Repository(asked.get("visibility") == "private"))
        self.send(409 if is_known else 200, {"url": f"{self.server.url}/{name}"})

    def validate(self) -> None:
        try:
            ModelCard(json.loads(self.body)["content"])
        except Exception as problem:
            return self.send(400, {"errors": [{"message": str(problem)}]})
        self.send(200, {"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        files = self.server.repositories[name].files
        answers = []
        for asked in json.loads(self.body)["files"]:
            is_lfs = asked["path"].endswith(_LFS)
            answer = {"path": asked["path"], "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
            if asked["path"] in files:
                answer["oid"] = (sha256 if is_lfs else blob)(files[asked["path"]])
            answers.append(answer)
        self.send(200, {"files": answers})

    def batch(self, name: str) -> None:
        objects = [
            {"oid": asked["oid"], "size": asked["size"]}
            | ({} if asked["oid"] in self.server.objects else {"actions": {"upload": self.upload(asked["oid"])}})
            for asked in json.loads(self.body)["objects"]
        ]
        self.send(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> dict[str, Any]:
        return {"href": f"{self.server.url}/lfs/{oid}", "header": {}}

    def lfs(self, oid: str) -> None:
        assert sha256(self.body) == oid
        self.server.objects[oid] = self.body
        self.send(200, {})

    def commit(self, name: str, revision: str) -> None:
        repository = self.server.repositories[name]
        files = dict(repository.files)
        for line in self.body.splitlines():
            key, value = json.loads(line).values()
            if key == "header":
                repository.messages.append(value["summary"])
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert key == "lfsFile"
                files[value["path"]] = self.server.objects[value["oid"]]
        repository.commits.append(files)
        url = f"{self.server.url}/{name}/commit/{repository.sha()}"
        self.send(200, {"commitUrl": url, "commitOid": repository.sha(), "pullRequestUrl": None})

    def find(self, name: str, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        """The SHA and files of a revision; answers that there is none."""
        repository = self.server.repositories.get(name)
        found = repository and repository.at(revision or "main")
        if not found:
            self.missing("RevisionNotFound" if repository else "RepoNotFound")
        return found or None

    def info(self, name: str, revision: str | None) -> None:
        if found := self.find(name, revision):
            sha, files = found
            about = {"_id": "1", "id": name, "modelId": name, "sha": sha, "tags": [], "downloads": 0, "likes": 0}
            about |= {"private": self.server.repositories[name].private, "gated": False, "disabled": False}
            about |= {"siblings": [{"rfilename": file} for file in files]}
            self.send(200, about)

    def tree(self, name: str, revision: str, folder: str | None) -> None:
        if found := self.find(name, revision):
            begin = f"{folder}/" if folder else ""
            inside = [file for file in found[1] if file.startswith(begin)]
            if folder and not inside:
                return self.missing("EntryNotFound")
            self.send(200, [entry(file, found[1][file]) for file in inside])

    def paths(self, name: str, revision: str) -> None:
        if found := self.find(name, revision):
            asked = parse_qs(self.body.decode()).get("paths", [])
            self.send(200, [entry(file, found[1][file]) for file in asked if file in found[1]])

    def resolve(self, name: str, revision: str, file: str) -> None:
        if not (found := self.find(name, revision)):
            return None
        sha, files = found
        if file not in files:
            return self.send(404, {"error": "not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        data, status = files[file], 200
        headers = {"X-Repo-Commit": sha, "ETag": f'"{oid_of(file, data)}"', "content-type": "application/octet-stream"}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", "")):
            first, last = int(asked[1]), int(asked[2] or len(data) - 1)
            headers["content-range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
            data, status = data[first : last + 1], 206
        self.send(status, data, headers)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def blob(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def oid_of(file: str, data: bytes) -> str:
    return sha256(data) if file.endswith(_LFS) else blob(data)


def entry(file: str, data: bytes) -> dict[str, Any]:
    """A file as the tree of a repository lists it."""
    lfs = {"lfs": {"oid": sha256(data), "size": len(data), "pointerSize": 130}} if file.endswith(_LFS) else {}
    return {"type": "file", "path": file, "size": len(data), "oid": blob(data), **lfs}


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """The server, at work in a thread."""
    with FakeHub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
