"""A reverse proxy as sites put before MLflow: TLS, a name with a password, an artifact store of its
own that may hang."""

from __future__ import annotations

import base64
import datetime
import http.server
import ipaddress
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAME, PASSWORD = "anna", "hunter2-do-not-print"
TOO_LARGE = b"<html><head><title>413 Request Entity Too Large</title></head></html>"
HOP = ("transfer-encoding", "content-encoding", "content-length", "connection")  # of one connection


@dataclass
class Proxy:
    """The proxy's state, which the tests read and set."""

    uri: str
    certificate: Path
    free: threading.Event = field(default_factory=threading.Event)  # else artifacts hang
    asked: list[str] = field(default_factory=list)  # paths, of requests with the right password
    hanging: str = "mlflow-artifacts"  # a part of the paths that hang
    largest: int | None = None  # bytes of a request; one with more is answered 413, as nginx does
    # called when the server has answered, and the one who asked does not know it yet
    taken: Callable[[str, str], None] = lambda method, path: None


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """(certificate, key) of 127.0.0.1, self-signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "proxy.crt", folder / "proxy.key"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


@contextmanager
def proxy(behind: str, folder: Path) -> Iterator[Proxy]:
    """A proxy before the server at ``behind``."""
    certificate, key = write_certificate(folder)
    wanted = "Basic " + base64.b64encode(f"{NAME}:{PASSWORD}".encode()).decode()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != wanted:
                return self.send(401, {}, b"who are you?")
            found.asked.append(self.path)
            if found.largest is not None and len(body) > found.largest:
                return self.send(413, {"Content-Type": "text/html"}, TOO_LARGE)
            if found.hanging in self.path and not found.free.wait(600):
                return self.send(504, {}, b"")
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", *HOP)}
            reply = httpx.request(
                self.command, behind + self.path, content=body, headers=headers, timeout=60
            )
            found.taken(self.command, self.path)
            self.send(reply.status_code, dict(reply.headers), reply.content)

        do_GET = do_POST = do_PUT = do_PATCH = answer

        def send(self, code: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(code)
            for name, value in headers.items():
                if name.lower() not in HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        listener.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        listener.socket = context.wrap_socket(listener.socket, server_side=True)
        found = Proxy(f"https://127.0.0.1:{listener.server_port}", certificate)
        found.free.set()
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        try:
            yield found
        finally:
            found.free.set()
            listener.shutdown()
