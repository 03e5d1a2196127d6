"""A local stand-in for the Hugging Face Hub: what its client asks to create, fill and read a model repository."""

import base64
import hashlib
import http.server
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .local_server import local_server

OWNER = "someone"
TOKEN = "hf_of_someone"


class Handler(http.server.BaseHTTPRequestHandler):
    """Repositories are those of OWNER; TOKEN may write to them."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        if self.path == "/":
            return self._answer(200, b"")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/main)?", self.path.partition("?")[0]):
            if match[1] not in self.server.repos:
                return self._json({}, 404)
            oid, files = (self.server.repos[match[1]] or [(None, {})])[-1]
            private = self.server.created.get(match[1], {}).get("visibility") == "private"
            about = {"sha": oid, "private": private, "siblings": [{"rfilename": name} for name in files]}
            return self._json({"id": match[1], "xetEnabled": False, **about})
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path.partition("?")[0])
        if not match:
            return self._json({"error": self.path}, 404)
        repo, revision, file = match.groups()
        commits = self.server.repos.get(repo)
        if commits is None:
            return self._answer(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        oid = commits[-1][0] if revision == "main" and commits else revision
        files = dict(commits).get(oid, {})
        if file in self.server.failing:
            return self._answer(503, b"")
        if file not in files:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid})
        content = files[file]
        etag = hashlib.sha256(content).hexdigest()
        self._answer(200, content, {"X-Repo-Commit": oid, "ETag": f'"{etag}"'})

    def do_POST(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] != OWNER:
                return self._json({"error": "You may not create a model there"}, 403)
            if repo in self.server.repos:
                return self._json({"error": "It exists", "url": f"{self.server.url}/{repo}"}, 409)
            self.server.repos[repo], self.server.created[repo] = [], asked
            return self._json({"url": f"{self.server.url}/{repo}"})
        if match := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            return self._json(
                {"files": [
                    {"path": file["path"], "uploadMode": self._mode(file["path"]), "shouldIgnore": False, "oid": None}
                    for file in json.loads(body)["files"]
                ]}
            )  # fmt: skip
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}", "header": {}}}}
                for each in json.loads(body)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            return self._commit(match[1], body)
        self._json({"error": path}, 404)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(content).hexdigest() == self.path.removeprefix("/lfs/")
        self.server.objects[self.path.removeprefix("/lfs/")] = content
        self._answer(200, b"")

    @staticmethod
    def _mode(path: str) -> str:
        return "lfs" if path.endswith((".safetensors", ".onnx")) else "regular"

    def _commit(self, repo: str, body: bytes) -> None:
        commits = self.server.repos[repo]
        head, files = commits[-1] if commits else (None, {})
        files = dict(files)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit", head) != head:
                return self._json({"error": "A commit has happened since"}, 412)
            if line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        oid = hashlib.sha1(body).hexdigest()
        commits.append((oid, files))
        self._json({"commitUrl": f"{self.server.url}/{repo}/commit/{oid}", "commitOid": oid, "success": True})

    def _json(self, content: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def hub() -> Iterator[http.server.ThreadingHTTPServer]:
    """Serves at `url`; `repos` has the commits of each repository (oid, files by path), `asked` the requests.

    Asking for a file in `failing` is answered with 503.
    """
    with local_server(Handler) as server:
        server.repos, server.created, server.objects, server.asked, server.failing = {}, {}, {}, [], set()
        yield server
