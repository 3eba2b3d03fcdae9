"""An S3 server over a real socket on loopback, and a proxy before it that injects faults."""

from __future__ import annotations

import http.client
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import psutil
import pytest
from moto.server import ThreadedMotoServer

CREDENTIALS = {"key": "test", "secret": "test"}


@dataclass
class ObjectStore:
    """A bucket of its own on the server.

    Attributes:
        endpoint: address of the server.
        root: URI of the bucket.
    """

    endpoint: str
    root: str

    @property
    def options(self) -> dict[str, Any]:
        return {**CREDENTIALS, "endpoint_url": self.endpoint}

    def put(self, key: str, data: bytes) -> str:
        """Put an object past the code under test and return its URI."""
        self._client().put_object(Bucket=self.root[5:], Key=key, Body=data)
        return f"{self.root}/{key}"

    def get(self, key: str) -> bytes:
        data: bytes = self._client().get_object(Bucket=self.root[5:], Key=key)["Body"].read()
        return data

    def _client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str) -> ObjectStore:
    store = ObjectStore(s3_endpoint, f"s3://bucket-{uuid.uuid4().hex[:12]}")
    store._client().create_bucket(Bucket=store.root[5:])
    return store


@dataclass
class FaultProxy:
    """Forwards requests to an S3 server, except those that its faults are for.

    `faults` is a list of `[method, part of the path, kind, times]`; kind is `503`, `403`, `cut` (the connection closes
    in the middle of the answer), `lost` (the request is done and the connection closes without an answer), `stall` (no
    answer for `stall_s`) or `killed` (the process that asks is killed in the middle of its request).
    """

    target: str
    faults: list[list[Any]] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    stall_s: float = 5.0

    def __enter__(self) -> FaultProxy:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy.handle(self)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append((request.command, request.path))
        kind = self._fault(request.command, request.path)
        if kind == "killed":
            request.rfile.read(int(request.headers.get("content-length", 2)) // 2)
            self._kill_sender(request)
            return
        body = self._body(request)
        if kind == "stall":
            time.sleep(self.stall_s)
        if kind == "503":
            self._answer(
                request, 503, {}, b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
            )
            return
        if kind == "403":
            self._answer(request, 403, {}, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")
            return
        connection = http.client.HTTPConnection(self.target.removeprefix("http://"))
        headers = {k: v for k, v in request.headers.items() if k.lower() not in ("transfer-encoding", "content-length")}
        connection.request(request.command, request.path, body=body, headers=headers)
        response = connection.getresponse()
        data = response.read()
        if kind == "lost":
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
            return
        skip = ("transfer-encoding", "connection", "content-length")
        kept = {name: value for name, value in response.getheaders() if name.lower() not in skip}
        length = response.getheader("content-length") if request.command == "HEAD" else None
        self._answer(request, response.status, kept, data, length, cut=kind == "cut")

    def _kill_sender(self, request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        ends = (request.client_address[1], self._server.server_address[1])
        for connection in psutil.net_connections("tcp"):
            # A connection that is closing has no process, and psutil.Process(None) is this one.
            if connection.pid and connection.raddr and (connection.laddr.port, connection.raddr.port) == ends:
                psutil.Process(connection.pid).kill()

    def _body(self, request: BaseHTTPRequestHandler) -> bytes | None:
        length = request.headers.get("content-length")
        if length is not None:
            return request.rfile.read(int(length))
        if "chunked" not in request.headers.get("transfer-encoding", ""):
            return None
        data = b""
        while size := int(request.rfile.readline().split(b";")[0], 16):
            data += request.rfile.read(size)
            request.rfile.readline()
        request.rfile.readline()
        return data

    def _fault(self, method: str, path: str) -> str | None:
        for fault in self.faults:
            if fault[0] == method and fault[1] in path and fault[3] > 0:
                fault[3] -= 1
                return str(fault[2])
        return None

    def _answer(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        headers: dict[str, str],
        data: bytes,
        length: str | None = None,
        cut: bool = False,
    ) -> None:
        request.send_response_only(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", length or str(len(data)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            request.close_connection = True
            request.wfile.flush()
            request.connection.shutdown(socket.SHUT_RDWR)
