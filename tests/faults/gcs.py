"""A stand-in for Google Cloud Storage: its JSON API over HTTP, on a thread, and told to fail.

It serves what gcsfs, google-cloud-storage and TensorStore ask for: objects with generations and
preconditions, listings, simple, multipart and resumable uploads, ranges, moves and copies.
"""

import base64
import contextlib
import email
import http.server
import json
import os
import random
import re
import socket
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import google_crc32c

KINDS = ("429", "503", "503 later", "slow", "lost", "cut upload", "cut download")


class Object(NamedTuple):
    content: bytes
    generation: int
    content_type: str


class Refused(Exception):
    """An answer other than 2xx, with its status."""

    def __init__(self, status: int, headers: dict[str, str] | None = None):
        self.status, self.headers = status, headers or {}


class Storage:
    """Buckets in memory, behind `url` while the context is open.

    Faults are drawn for a request by its content and its count, so that a seed gives the same
    ones in any order of threads.
    """

    def __init__(self):
        self.reset()
        self.lock = threading.RLock()
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        server.daemon_threads = True
        server.storage = self  # pyright: ignore[reportAttributeAccessIssue]
        self._server = server
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        # what each client library reads
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.url,  # gcsfs and google-cloud-storage
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # TensorStore's
            "FSSPEC_GCS_TOKEN": "anon",
            "GOOGLE_CLOUD_PROJECT": "tests",
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it asks over gRPC
        }

    def reset(self) -> None:
        """Empties the buckets and ends all faults."""
        self.objects: dict[tuple[str, str], Object] = {}
        self.faults: Counter[str] = Counter()  # those that happened, by kind
        self.requests: Counter[str] = Counter()  # all that came, by method and path
        self.down = False  # answers 503 to all
        self.stale = 0  # listings still to come that show what was there before the last change
        self.on_upload = lambda name: None  # called before an object is stored
        self._rate, self._seed, self._kinds = 0.0, 0, KINDS
        self._before: dict[tuple[str, str], Object] = {}
        self._uploads: dict[str, tuple[str, str, dict[str, str], bytearray]] = {}
        self._generation = 0

    def __enter__(self) -> "Storage":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextlib.contextmanager
    def failing(self, rate: float, seed: int, kinds: tuple[str, ...] = KINDS) -> Iterator[None]:
        """In the context, about `rate` of the requests fail, each in one of the ways of `kinds`."""
        self._rate, self._seed, self._kinds = rate, seed, kinds
        try:
            yield
        finally:
            self._rate = 0.0

    def files(self, prefix: str) -> dict[str, bytes]:
        """Names below `bucket/prefix/`, without it, and their contents."""
        bucket, _, prefix = f"{prefix}/".partition("/")
        with self.lock:
            return {
                name.removeprefix(prefix): found.content
                for (where, name), found in sorted(self.objects.items())
                if where == bucket and name.startswith(prefix)
            }

    def fault(self, request: str) -> str:
        """The fault of a request, "" for none."""
        with self.lock:
            self.requests[request] += 1
            chance = random.Random(f"{self._seed} {request} {self.requests[request]}")
            if self.down:
                return "503"
            return chance.choice(self._kinds) if chance.random() < self._rate else ""

    def put(self, bucket: str, name: str, content: bytes, content_type: str) -> dict:
        self.on_upload(f"{bucket}/{name}")
        with self.lock:
            self._before = dict(self.objects)
            self._generation += 1
            found = Object(content, self._generation, content_type)
            self.objects[bucket, name] = found
            return self.resource(bucket, name)

    def remove(self, bucket: str, name: str) -> None:
        self._before = dict(self.objects)
        del self.objects[bucket, name]

    def check(self, bucket: str, name: str, query: dict[str, str]) -> None:
        """Raises Refused where a precondition of the query does not hold."""
        found = self.objects.get((bucket, name))
        generation = found.generation if found else 0
        if int(query.get("ifGenerationMatch", generation)) != generation:
            raise Refused(412)
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation:
            raise Refused(304)

    def find(self, bucket: str, name: str) -> Object:
        if found := self.objects.get((bucket, name)):
            return found
        raise Refused(404)

    def resource(self, bucket: str, name: str) -> dict:
        found = self.find(bucket, name)
        crc = google_crc32c.Checksum(found.content).digest()
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{found.generation}",
            "name": name,
            "bucket": bucket,
            "generation": str(found.generation),
            "metageneration": "1",
            "size": str(len(found.content)),
            "contentType": found.content_type,
            "crc32c": base64.b64encode(crc).decode(),
            "etag": str(found.generation),
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
        }

    def list(self, bucket: str, query: dict[str, str]) -> dict:
        with self.lock:
            objects = self.objects
            if self.stale:
                self.stale, objects = self.stale - 1, self._before
            prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
            start, end = query.get("startOffset", ""), query.get("endOffset", "\uffff")
            entries = {}  # name or prefix -> whether it is a prefix
            for where, name in objects:
                if where != bucket or not name.startswith(prefix) or not start <= name < end:
                    continue
                head, found, _ = name[len(prefix) :].partition(delimiter or "\0")
                entries[prefix + head + delimiter if found else name] = bool(found)
            names = [name for name in sorted(entries) if name > query.get("pageToken", "")]
            page = names[: int(query.get("maxResults", 1000))]
            answer: dict = {"kind": "storage#objects"}
            answer["prefixes"] = [name for name in page if entries[name]]
            answer["items"] = [
                self.resource(bucket, name)
                for name in page
                if not entries[name] and (bucket, name) in self.objects
            ]
            if len(page) < len(names):
                answer["nextPageToken"] = page[-1]
            return answer

    def begin(self, bucket: str, name: str, query: dict[str, str]) -> str:
        """Begins a resumable upload; returns its id."""
        upload = str(len(self._uploads))  # none is forgotten
        self._uploads[upload] = (bucket, name, query, bytearray())
        return upload

    def go_on(self, upload: str, where: str, part: bytes, content_type: str) -> dict | None:
        """Adds a part of a resumable upload; returns the object's resource once it is whole."""
        bucket, name, query, content = self._uploads[upload]
        first, total = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", where).groups()
        if first is not None and int(first) <= len(content):  # a part may come twice
            content[int(first) : int(first) + len(part)] = part
        if total == "*" or int(total) != len(content):
            raise Refused(308, {"Range": f"bytes=0-{len(content) - 1}"} if content else {})
        self.check(bucket, name, query)
        return self.put(bucket, name, bytes(content), content_type)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except ConnectionError:
            self._cut()

    def log_message(self, *_):
        pass

    def _handle(self):
        storage: Storage = self.server.storage  # pyright: ignore[reportAttributeAccessIssue]
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        fault = storage.fault(f"{self.command} {url.path}")
        length = int(self.headers.get("Content-Length", 0))
        if fault == "cut upload" and length:
            self.rfile.read(length // 2)
            storage.faults[fault] += 1
            return self._cut()
        body = self.rfile.read(length)
        if fault[:3].isdecimal():
            storage.faults[fault] += 1
            later = {"Retry-After": "1"} if "later" in fault else {}
            return self._answer(int(fault[:3]), _error(int(fault[:3])), later)
        if fault == "slow":
            storage.faults[fault] += 1
            time.sleep(0.3)
        try:
            with storage.lock:
                status, content, headers = _answer(storage, self, url.path, query, body)
        except Refused as refused:
            status, headers = refused.status, refused.headers
            content = b"" if status in (304, 308) else _error(status)
        if fault == "lost" and self.command != "GET":
            storage.faults[fault] += 1
            return self._cut()
        if fault == "cut download" and len(content) > 1 and status < 300:
            storage.faults[fault] += 1
            self._answer(status, content, headers, len(content) // 2)
            return self._cut()
        self._answer(status, content, headers)

    do_GET = do_POST = do_PUT = do_DELETE = _handle

    def _answer(self, status, content, headers, sent=None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:sent])

    def _cut(self):
        """Ends the connection, as a network does that fails."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


def _answer(storage: Storage, request, path: str, query, body: bytes):
    """(status, content, headers) of a request; raises Refused."""
    method, content_type = request.command, request.headers.get("Content-Type", "")
    parts = [urllib.parse.unquote(part) for part in path.strip("/").split("/")]
    if parts[0] in ("upload", "download"):
        del parts[0]
    parts = parts[2:]  # storage, v1
    match method, parts:
        case "POST" | "PUT", ["b", bucket, "o"] if "uploadType" in query:
            return _upload(storage, request, bucket, query, body)
        case "GET", ["b", bucket]:
            return _json({"kind": "storage#bucket", "name": bucket, "id": bucket})
        case "GET", ["b", bucket, "o"]:
            return _json(storage.list(bucket, query))
        case "GET", ["b", bucket, "o", name]:
            found = storage.find(bucket, name)
            storage.check(bucket, name, query)
            if query.get("alt") != "media":
                return _json(storage.resource(bucket, name))
            return _download(found, request.headers.get("Range", ""))
        case "DELETE", ["b", bucket, "o", name]:
            storage.find(bucket, name)
            storage.check(bucket, name, query)
            storage.remove(bucket, name)
            return 204, b"", {}
        case "POST", ["b", bucket, "o", name, "moveTo", "o", target]:
            found = storage.find(bucket, name)
            storage.remove(bucket, name)
            return _json(storage.put(bucket, target, found.content, found.content_type))
        case "POST", ["b", bucket, "o", name, "rewriteTo", "b", other, "o", target]:
            found = storage.find(bucket, name)
            resource = storage.put(other, target, found.content, found.content_type)
            return _json({"kind": "storage#rewriteResponse", "done": True, "resource": resource})
    raise AssertionError(f"unexpected request: {method} {path} {query} {content_type}")


def _upload(storage: Storage, request, bucket: str, query, body: bytes):
    content_type = request.headers.get("Content-Type", "application/octet-stream")
    match query:
        case {"upload_id": upload}:
            return _json(
                storage.go_on(upload, request.headers["Content-Range"], body, content_type)
            )
        case {"uploadType": "resumable"}:
            name = query.get("name") or json.loads(body)["name"]
            upload = storage.begin(bucket, name, query)
            where = f"{request.server.storage.url}{request.path.partition('?')[0]}"
            return 200, b"", {"Location": f"{where}?uploadType=resumable&upload_id={upload}"}
        case {"uploadType": "multipart"}:
            head = f"Content-Type: {content_type}\r\n\r\n".encode()
            message = email.message_from_bytes(head + body)
            about, _ = message.get_payload()
            name = json.loads(about.get_payload())["name"]
            mark = re.search(r'boundary="?([^";]+)', content_type)[1].encode()
            part = body.split(b"--" + mark)[2]  # bytes as they are, unlike those of a message
            ends = re.search(rb"\r?\n\r?\n", part)
            content = re.sub(rb"\r?\n$", b"", part[ends.end() :])
            content_type = message.get_payload()[1].get_content_type()
        case _:
            name, content = query["name"], body
    storage.check(bucket, name, query)
    return _json(storage.put(bucket, name, content, content_type))


def _download(found: Object, where: str):
    size, status, content = len(found.content), 200, found.content
    headers = {"Content-Type": found.content_type, "X-Goog-Generation": str(found.generation)}
    if asked := re.fullmatch(r"bytes=(\d*)-(\d*)", where):
        first = int(asked[1]) if asked[1] else size - int(asked[2])
        last = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
        if first > last:
            raise Refused(416)
        status, content = 206, found.content[first : last + 1]
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return status, content, headers


def _json(value):
    return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}


def _error(status: int) -> bytes:
    return json.dumps({"error": {"code": status, "message": f"status {status}"}}).encode()


if __name__ == "__main__":  # by hand: eval "$(python -m tests.faults.gcs)" in another shell
    with Storage() as storage:
        print("\n".join(f"export {name}={value}" for name, value in storage.environment.items()))
        os.close(1)
        threading.Event().wait()
