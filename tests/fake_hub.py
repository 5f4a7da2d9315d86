"""A Hub on 127.0.0.1, for the real client of huggingface_hub: it answers what pushes and loads models.

Files of more than a few bytes go over Git LFS, as on the Hub. `requests` records what was asked.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import yaml

LFS_BYTES = 2000
"""Larger files go over Git LFS."""
LICENSES = {"apache-2.0", "mit", "creativeml-openrail-m", "openrail++", "other"}


class Answer(NamedTuple):
    """What the server says to a request."""

    status: int
    body: bytes | Mapping[str, Any] = b""
    headers: Mapping[str, str] = {}


class Refused(Exception):  # noqa: N818  (an answer, not a fault)
    """Ends a request with an answer."""

    def __init__(self, status: int, message: str, code: str | None = None):
        self.answer = Answer(
            status,
            {"error": message},
            {"X-Error-Message": message} | ({} if code is None else {"X-Error-Code": code}),
        )


class Repository:
    """A repository: files by commit, and names of commits."""

    def __init__(self, private: bool = False):
        self.private = private
        self.gated = False
        self.commits: list[dict[str, bytes]] = []
        self.revisions: dict[str, int] = {}
        self.commit({".gitattributes": b"*.safetensors filter=lfs\n"})

    def commit(self, files: Mapping[str, bytes]) -> None:
        """These are the files of the main branch from now on."""
        self.commits.append(dict(files))
        self.revisions["main"] = len(self.commits) - 1

    def tag(self, name: str) -> None:
        """Give the main branch's last commit a name."""
        self.revisions[name] = self.revisions["main"]

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the main branch, by path."""
        return self.commits[self.revisions["main"]]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        """The commit's hash and files of a branch, tag or hash."""
        for number, files in enumerate(self.commits):
            sha = hashlib.sha1(f"{id(self)} {number}".encode()).hexdigest()
            if revision == sha or self.revisions.get(revision) == number:
                return sha, files
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")


class FakeHub:
    """The server and its state. `with FakeHub() as hub` runs it."""

    def __init__(self) -> None:
        self.users = {"hf_alice": "alice", "hf_read": "alice", "hf_bob": "bob"}
        """Names of users by their tokens; that of `hf_read` may not write."""
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        """Uploaded files of Git LFS, by SHA-256."""
        self.requests: list[tuple[str, str]] = []
        self.break_upload: Callable[[str], bool] = lambda oid: False
        """Whether the upload of a file of Git LFS is cut off."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                path = unquote(urlsplit(self.path).path)
                hub.requests.append((self.command, path))
                token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
                try:
                    answer = hub.answer(self.command, path, token, body)
                except Refused as refused:
                    answer = refused.answer
                except ConnectionAbortedError:
                    self.close_connection = True
                    self.connection.close()
                    return
                content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(content)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> "FakeHub":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, name: str, files: Path | Mapping[str, bytes]) -> Repository:
        """A repository with these files, or with those of a folder."""
        if isinstance(files, Path):
            paths = (path for path in files.rglob("*") if path.is_file())
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in paths}
        repository = self.repositories.setdefault(name, Repository())
        repository.commit(files)
        return repository

    def downloads(self, name: str) -> list[str]:
        """The files of a repository whose content was asked for, sorted; then this is forgotten."""
        pattern = re.compile(rf"/{re.escape(name)}/resolve/(?:refs/pr/)?[^/]+/(.+)")
        found = [pattern.fullmatch(path) for method, path in self.requests if method == "GET"]
        self.requests.clear()
        return sorted(match[1] for match in found if match is not None)

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> Answer:
        """The answer to a request. Raises Refused, and ConnectionAbortedError where the upload is cut off."""
        routes: dict[str, Callable[..., Answer]] = {
            r"GET /api/whoami-v2": self._whoami,
            r"POST /api/validate-yaml": self._validate,
            r"POST /api/repos/create": self._create,
            r"GET /api/models/([^/]+/[^/]+)(?:/revision/(.+))?": self._info,
            r"GET /api/models/([^/]+/[^/]+)/tree/(.+)": self._tree,
            r"POST /api/models/([^/]+/[^/]+)/preupload/(.+)": self._preupload,
            r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch": self._lfs_batch,
            r"PUT /lfs/(\w+)": self._lfs_put,
            r"POST /api/models/([^/]+/[^/]+)/commit/(.+)": self._commit,
            r"(?:GET|HEAD) /([^/]+/[^/]+)/resolve/(refs/pr/[^/]+|[^/]+)/(.+)": self._resolve,
            r"HEAD /api/telemetry/.*": lambda *_: Answer(200),
        }
        for pattern, route in routes.items():
            found = re.fullmatch(pattern, f"{method} {path}")
            if found is not None:
                return route(token, body, *found.groups())
        raise Refused(404, f"the fake Hub does not know {method} {path}")

    def _user(self, token: str | None) -> str:
        if token is None or token not in self.users:
            raise Refused(401, "Invalid username or password.")
        return self.users[token]

    def _repository(self, name: str, token: str | None, write: bool = False) -> Repository:
        user = self.users.get(token or "")
        found = self.repositories.get(name)
        if found is None or (found.private and name.split("/")[0] != user):
            raise Refused(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if found.gated:
            raise Refused(403, "Access to this model is restricted", "GatedRepo")
        if write and (name.split("/")[0] != user or token == "hf_read"):
            raise Refused(403, "you must have write access")
        return found

    def _whoami(self, token: str | None, _: bytes) -> Answer:
        return Answer(200, {"type": "user", "name": self._user(token), "orgs": [], "auth": {}})

    def _validate(self, _: str | None, body: bytes) -> Answer:
        card = json.loads(body)["content"].split("---\n")
        header = yaml.safe_load(card[1])
        if header.get("license") not in LICENSES:
            return Answer(400, {"errors": [{"message": '"license" must be one of [...]'}], "warnings": []})
        return Answer(200, {"errors": [], "warnings": []})

    def _create(self, token: str | None, body: bytes) -> Answer:
        values = json.loads(body)
        user = self._user(token)
        owner = values.get("organization") or user
        if token == "hf_read" or owner != user:
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        name = f"{owner}/{values['name']}"
        if name in self.repositories:
            return Answer(409, {"error": "You already created this model repo", "url": name})
        self.repositories[name] = Repository(values.get("private", False))
        return Answer(200, {"url": f"{self.endpoint}/{name}"})

    def _info(self, token: str | None, _: bytes, name: str, revision: str | None) -> Answer:
        repository = self._repository(name, token)
        sha, files = repository.at(revision or "main")
        return Answer(
            200,
            {
                "id": name,
                "sha": sha,
                "private": repository.private,
                "tags": [],
                "siblings": [{"rfilename": file} for file in sorted(files)],
            },
        )

    def _tree(self, token: str | None, _: bytes, name: str, revision: str) -> Answer:
        _, files = self._repository(name, token).at(revision)
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in sorted(files.items())
        ]
        return Answer(200, json.dumps(entries).encode())

    def _preupload(self, token: str | None, body: bytes, name: str, _: str) -> Answer:
        self._repository(name, token, write=True)
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] > LFS_BYTES else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return Answer(200, {"files": files})

    def _lfs_batch(self, token: str | None, body: bytes, name: str) -> Answer:
        self._repository(name, token, write=True)
        objects = []
        for entry in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.endpoint}/lfs/{entry['oid']}"}}
            new = {} if entry["oid"] in self.objects else {"actions": upload}
            objects.append({"oid": entry["oid"], "size": entry["size"], **new})
        return Answer(200, {"transfer": "basic", "objects": objects})

    def _lfs_put(self, _: str | None, body: bytes, oid: str) -> Answer:
        if self.break_upload(oid):
            raise ConnectionAbortedError
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "the content has another SHA-256")
        self.objects[oid] = body
        return Answer(200)

    def _commit(self, token: str | None, body: bytes, name: str, _: str) -> Answer:
        repository = self._repository(name, token, write=True)
        files = dict(repository.files)
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        repository.commit(files)
        sha, _files = repository.at("main")
        return Answer(200, {"commitUrl": f"{self.endpoint}/{name}/commit/{sha}", "commitOid": sha})

    def _resolve(self, token: str | None, _: bytes, name: str, revision: str, file: str) -> Answer:
        sha, files = self._repository(name, token).at(revision)
        if file not in files:
            refused = Refused(404, "Entry not found", "EntryNotFound").answer
            return refused._replace(headers={**refused.headers, "X-Repo-Commit": sha})
        data = files[file]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        return Answer(200, data, {"ETag": etag, "X-Repo-Commit": sha, "Content-Type": "application/octet"})
