"""A hub on loopback that takes commits as the Hugging Face hub does, and gives the files out again."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from loopback import serving_on_loopback

TOKEN = "hf_loopback"
LFS = (".safetensors", ".gguf")  # what the hub keeps in Git LFS


@dataclass
class Hub:
    """`repositories`: {owner/name: {file: content}}; `objects`: what was put into Git LFS; `faults`: {end of
    a path: (status, answer)} in place of the right one.
    """

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    writers: tuple[str, ...] = (TOKEN,)
    faults: dict[str, tuple[int, bytes]] = field(default_factory=dict)


@contextlib.contextmanager
def serving_uploads() -> Iterator[Hub]:
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *values: object) -> None:
            """Tests read what the command prints, not this."""

        def answer(self, value: Any, code: int = 200) -> None:
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(code)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("content-length", 0)))

        def do_PUT(self) -> None:
            content = self.body()
            hub.objects[hashlib.sha256(content).hexdigest()] = content
            self.answer({})

        def do_POST(self) -> None:
            content, path = self.body(), urlsplit(self.path).path
            for end, (code, body) in hub.faults.items():
                if path.endswith(end):
                    return self.answer(body, code)
            if self.headers.get("authorization", "").removeprefix("Bearer ") not in hub.writers:
                return self.answer({"error": "You don't have the rights to write here."}, 403)
            if path == "/api/repos/create":
                asked = json.loads(content)
                name = f"{asked['organization']}/{asked['name']}"
                hub.repositories.setdefault(name, {})
                return self.answer({"url": f"{hub.address}/{name}"})
            if path == "/api/validate-yaml":
                return self.answer({"warnings": [], "errors": []})
            if path.endswith("/preupload/main"):
                paths = [file["path"] for file in json.loads(content)["files"]]
                modes = ["lfs" if path.endswith(LFS) else "regular" for path in paths]
                files = [
                    {"path": path, "uploadMode": mode, "shouldIgnore": False}
                    for path, mode in zip(paths, modes, strict=True)
                ]
                return self.answer({"files": files})
            if path.endswith(".git/info/lfs/objects/batch"):
                objects = [
                    one | {"actions": {"upload": {"href": f"{hub.address}/lfs/{one['oid']}"}}}
                    for one in json.loads(content)["objects"]
                ]
                return self.answer({"transfer": "basic", "objects": objects})
            name = path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in content.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    hub.repositories[name][value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    hub.repositories[name][value["path"]] = hub.objects[value["oid"]]
            return self.answer(
                {"commitUrl": f"{hub.address}/{name}/commit/{commit(name)}", "commitOid": commit(name)}
            )

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = urlsplit(self.path).path.strip("/")
            if path.startswith("api/models/"):
                name = "/".join(path.split("/")[2:4])
                if name not in hub.repositories:
                    return self.answer({"error": "Repository not found"}, 404)
                files = [
                    {"rfilename": file, "size": len(content)}
                    | (
                        {"lfs": {"sha256": hashlib.sha256(content).hexdigest()}}
                        if file.endswith(LFS)
                        else {"blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}
                    )
                    for file, content in hub.repositories[name].items()
                ]
                return self.answer({"sha": commit(name), "siblings": files})
            owner, name, _, _, *file = path.split("/")
            return self.answer(hub.repositories[f"{owner}/{name}"]["/".join(file)])

    def commit(name: str) -> str:
        return hashlib.sha1(repr(sorted(hub.repositories[name])).encode()).hexdigest()

    closing = threading.Event()
    with serving_on_loopback(Handler, closing) as port:
        hub.address = f"http://127.0.0.1:{port}"
        yield hub
