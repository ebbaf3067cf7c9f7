"""Servers for tests: what the clients of S3, Google Cloud Storage and plain HTTP ask of one, on this machine."""

import hashlib
import http.server
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

# Google's client would ask about the kind of bucket first, by gRPC and TLS, which no emulator speaks.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"


@dataclass
class Stored:
    content: bytes
    written: float = 1_700_000_000.25

    @property
    def etag(self) -> str:
        return hashlib.md5(self.content).hexdigest()


@dataclass
class Bucket:
    """Files by their names, and how they are told of."""

    files: dict[str, Stored] = field(default_factory=dict)
    ranges: bool = True
    headers: tuple[str, ...] = ("ETag", "Last-Modified")
    """Of plain HTTP: what it says of a file besides its size."""
    address: str = ""
    asked: list[str] = field(default_factory=list)
    given: int = 0
    """Bytes in all answers."""

    def put(self, name: str, content: bytes) -> None:
        self.files[name] = Stored(content)


@contextmanager
def serving(kind: type["Handler"], **settings: Any) -> Iterator[Bucket]:
    """A bucket that a server of this kind gives out, at its `address`."""
    bucket = Bucket(**settings)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (kind,), {"bucket": bucket}))
    bucket.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    """Plain HTTP."""

    bucket: Bucket
    protocol_version = "HTTP/1.1"
    # An answer in one go: half of one waits for the acknowledgement of the other.
    wbufsize = 1 << 16
    disable_nagle_algorithm = True

    def log_message(self, *_):
        """Nothing."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.bucket.asked.append(f"{self.command} {self.path}")
        self.answer(unquote(urlsplit(self.path).path), parse_qs(urlsplit(self.path).query))

    def answer(self, path: str, query: dict[str, list[str]]) -> None:  # noqa: ARG002 - others need it
        self.send_file(path.removeprefix("/"), *self.bucket.headers)

    def send_file(self, name: str, *told: str) -> None:
        stored = self.bucket.files.get(name)
        if stored is None:
            self.send(404, b"")
            return
        headers = {"ETag": f'"{stored.etag}"', "Last-Modified": formatdate(stored.written, usegmt=True)}
        headers = {name: headers[name] for name in told}
        asked = self.headers.get("Range")
        if asked is None or not self.bucket.ranges:
            self.send(200, stored.content, headers)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        begin, end = int(first), min(len(stored.content), int(last or len(stored.content) - 1) + 1)
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(stored.content)}"
        self.send(206, stored.content[begin:end], headers)

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.bucket.given += len(content)
            self.wfile.write(content)

    def listed(self, query: dict[str, list[str]]) -> tuple[list[str], list[str]]:
        """Names below a prefix, and what stands for those that lie deeper, where a delimiter is asked for."""
        prefix, delimiter = (query.get(key, [""])[0] for key in ("prefix", "delimiter"))
        names, folders = [], {}
        for name in sorted(self.bucket.files):
            if name.startswith(prefix):
                head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
                if found:
                    folders[prefix + head + found] = None
                else:
                    names.append(name)
        return names, list(folders)


class S3(Handler):
    """/bucket/name; a list tells fractions of seconds, and a single answer none, as in MinIO."""

    def answer(self, path: str, query: dict[str, list[str]]) -> None:
        _, bucket, *name = path.split("/", 2)
        if bucket != "bucket":
            self.send(404, b"")
        elif name and name[0]:
            self.send_file(name[0], "ETag", "Last-Modified")
        else:
            names, folders = self.listed(query)
            files = "".join(
                f"<Contents><Key>{escape(name)}</Key><Size>{len(self.bucket.files[name].content)}</Size>"
                f"<LastModified>2023-11-14T22:13:20.250Z</LastModified>"
                f"<ETag>&quot;{self.bucket.files[name].etag}&quot;</ETag></Contents>"
                for name in names
            )
            prefixes = "".join(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in folders)
            content = (
                f'<?xml version="1.0"?><ListBucketResult><Name>bucket</Name><KeyCount>{len(names) + len(folders)}'
                f"</KeyCount><IsTruncated>false</IsTruncated>{files}{prefixes}</ListBucketResult>"
            )
            self.send(200, content.encode(), {"Content-Type": "application/xml"})


class GCS(Handler):
    """The JSON interface of Google Cloud Storage."""

    def answer(self, path: str, query: dict[str, list[str]]) -> None:
        _, _, name = path.partition("/b/bucket/o")
        name = name.removeprefix("/")
        if "/b/bucket" not in path or (name and name not in self.bucket.files):
            self.send(404, b'{"error": {"code": 404, "message": "Not Found"}}', {"Content-Type": "application/json"})
        elif query.get("alt") == ["media"]:
            self.send_file(name)
        elif name:
            self.send_json(self.described(name))
        else:
            names, folders = self.listed(query)
            self.send_json({"items": [self.described(name) for name in names], "prefixes": folders})

    def described(self, name: str) -> dict[str, Any]:
        stored = self.bucket.files[name]
        link = f"{self.bucket.address}/download/storage/v1/b/bucket/o/{quote(name, safe='')}?alt=media"
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": "bucket",
            "size": str(len(stored.content)),
            "etag": stored.etag,
            "updated": "2023-11-14T22:13:20.250Z",
            "mediaLink": link,
        }

    def send_json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})
