"""Credentials that cannot be had for a moment, or not at all, against a metadata service over a real socket."""

from __future__ import annotations

import datetime
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from botocore.exceptions import ClientError

from effsam2_ray import storage
from effsam2_ray.inputs.reader import read_unit
from effsam2_ray.inputs.work_list import ImageRef, Unit, image_uid
from effsam2_ray.storage import CredentialsError, Retry, failure_status, is_transient, read_bytes


class MetadataService(ThreadingHTTPServer):
    """A node's metadata service that is busy `failures` times, and a store that answers whoever has signed."""

    daemon_threads = True

    def __init__(self, failures: int):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.failures = failures
        self.uri = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: MetadataService

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.failures -= 1
        self._answer(503 if self.server.failures >= 0 else 200, b"token")

    def do_GET(self) -> None:
        if not self.path.startswith("/latest/"):
            self._answer(200 if "Authorization" in self.headers else 403, b"image bytes")
        elif self.path.rstrip("/").endswith("security-credentials"):
            self._answer(503 if self.server.failures >= 0 else 200, b"role")
        else:
            end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=5)
            keys = {"AccessKeyId": "a", "SecretAccessKey": "s", "Token": "t", "Expiration": f"{end:%Y-%m-%dT%H:%M:%SZ}"}
            self._answer(200, json.dumps({"Code": "Success", "Type": "AWS-HMAC", **keys}).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"e"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def service(request, monkeypatch) -> Iterator[MetadataService]:
    with MetadataService(request.param) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in {
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"{server.uri}/",
            "AWS_ENDPOINT_URL": server.uri,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(storage, "RETRY", Retry(8, 0.02, 0.1))
        monkeypatch.setattr(storage, "ASK_AGAIN_S", 0.0)
        monkeypatch.setattr(storage, "_filesystems", {})
        yield server
        server.shutdown()


def unit() -> Unit:
    uris = [f"s3://bucket/{number}.jpg" for number in range(3)]
    return Unit("u", "files", tuple(ImageRef(image_uid(uri), uri, size_bytes=11) for uri in uris), 33)


@pytest.mark.parametrize("service", [2], indirect=True)
def test_a_busy_metadata_service_costs_a_moment(service: MetadataService):
    assert read_bytes("s3://bucket/a.jpg") == b"image bytes"
    assert service.failures < 0


@pytest.mark.parametrize("service", [10**6], indirect=True)
def test_a_unit_on_a_node_without_credentials_is_no_unit_of_denied_rows(service: MetadataService):
    with pytest.raises(CredentialsError, match="no valid credentials: NoCredentialsError"):
        read_unit(unit())
    service.failures = 0
    assert [record.status for record in read_unit(unit())] == ["ok"] * 3


def test_expired_tokens_are_asked_for_anew_and_missing_rights_are_not():
    def refused(code: str) -> PermissionError:
        error = PermissionError("refused")
        error.__cause__ = ClientError({"Error": {"Code": code}}, "GetObject")
        return error

    for code in ("ExpiredToken", "RequestTimeTooSkewed"):
        assert is_transient(refused(code)) and failure_status(refused(code)) == "denied"
    assert not is_transient(refused("AccessDenied"))
    assert not is_transient(FileNotFoundError("ExpiredToken.jpg"))
