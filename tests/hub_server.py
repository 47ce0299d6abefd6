"""A stand-in for the Hugging Face Hub on loopback: models, branches, commits, large files, tokens.

It answers what huggingface_hub asks of it with the answers of the Hub's own, and keeps what it was
asked. Nothing leaves the machine.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

TOKEN = "hf_a-token-that-no-message-shows"


@dataclass
class Repository:
    """Commits by their hash, and what branches stand for."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add files to a branch; return the commit."""
        before = self.commits.get(self.branches.get(branch, ""), {})
        commit = secrets.token_hex(20)
        self.commits[commit] = {**before, **files}
        self.branches[branch] = commit
        return commit

    def find(self, revision: str) -> str | None:
        """Return the commit of a branch, or that is one."""
        return self.branches.get(revision, revision if revision in self.commits else None)


class Hub:
    """What the server holds.

    Attributes:
        repositories: by "ORG/REPO".
        large: contents of large files by their SHA-256.
        asked: method and path of each request.
        before_commit: called before a commit is taken, as somebody else might commit meanwhile.
        fail: status to answer everything with, where there is one.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.before_commit: Callable[[], object] = lambda: None
        self.fail: int | None = None
        self.endpoint = ""

    def add(self, name: str, private: bool = False) -> Repository:
        """Make a repository as the Hub does: with one commit."""
        made = self.repositories[name] = Repository(private)
        made.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        return made


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self, status: int, content: object = None, error: str = "", **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(status)
        if error:
            headers["X_Error_Code"] = error
        for name, value in {"Content_Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    @property
    def _trusted(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _serve(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.asked.append((self.command, path))
        body = self._body()
        if self.hub.fail is not None:
            return self._answer(self.hub.fail, X_Error_Message="Internal Error")
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if path.startswith("/lfs/"):
            self.hub.large[path.removeprefix("/lfs/")] = body
            return self._answer(200)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        return self._serve_repository(path, body)

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815

    def _create(self, asked: dict[str, str]) -> None:
        if not self._trusted:
            return self._answer(401, {"error": "Invalid username or password."})
        name = f"{asked['organization']}/{asked['name']}"
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.add(name, private)
        return self._answer(200, {"url": f"{self.hub.endpoint}/{name}"})

    def _serve_repository(self, path: str, body: bytes) -> None:
        match = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+?)(\.git)?(?:/(.*))?", path)
        repository = self.hub.repositories.get(match[1]) if match else None
        if match is None or repository is None or (repository.private and not self._trusted):
            status = 404 if self._trusted else 401
            return self._answer(status, {"error": "Repository not found"}, "RepoNotFound")
        action, _, rest = (match[3] or "").partition("/")
        if match[2]:
            return self._batch(json.loads(body))
        if action == "preupload":
            return self._modes(json.loads(body))
        if action == "commit":
            return self._commit(match[1], repository, rest, body)
        revision, _, file = rest.partition("/")
        commit = repository.find(revision or "main")
        if commit is None:
            return self._answer(404, {"error": "Invalid rev id"}, "RevisionNotFound")
        if action == "resolve":
            return self._file(repository, commit, file)
        files = [{"rfilename": name} for name in repository.commits[commit]]
        info = {"id": match[1], "sha": commit, "private": repository.private, "siblings": files}
        return self._answer(200, info)

    def _file(self, repository: Repository, commit: str, name: str) -> None:
        content = repository.commits[commit].get(name)
        if content is None:
            return self._answer(
                404, {"error": "Entry not found"}, "EntryNotFound", X_Repo_Commit=commit
            )
        digest = hashlib.sha256(content).hexdigest()
        return self._answer(200, content, X_Repo_Commit=commit, ETag=f'"{digest}"')

    def _modes(self, asked: dict[str, list[dict[str, str]]]) -> None:
        def mode(path: str) -> str:
            return "lfs" if path.endswith(".safetensors") else "regular"

        files = [
            {"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False, "oid": None}
            for f in asked["files"]
        ]
        self._answer(200, {"files": files})

    def _batch(self, asked: dict[str, list[dict[str, str]]]) -> None:
        objects = [
            {**file, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{file['oid']}"}}}
            for file in asked["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, repository: Repository, branch: str, body: bytes) -> None:
        if not self._trusted:
            return self._answer(403, {"error": "Forbidden: you have no right to write here"})
        self.hub.before_commit()
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                if value.get("parentCommit") not in (None, repository.branches[branch]):
                    return self._answer(412, {"error": "A commit has happened since"})
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                content = self.hub.large[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                files[value["path"]] = content
        commit = repository.commit(files, branch)
        url = f"{self.hub.endpoint}/{name}/commit/{commit}"
        return self._answer(200, {"commitUrl": url, "commitOid": commit})


@contextmanager
def serve() -> Iterator[Hub]:
    """Run the server while the context lasts."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
