"""``tests.traffic`` for its unit tests, and a small real balancer that can be made to fail in each way."""

import contextlib
import http.server
import json
import pathlib
import threading
import types
import urllib.parse

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]


class SmallBalancer:
    """Answers as a balancer with gateways behind it does. ``planted``: id of a request -> how it fails."""

    url_host = "127.0.0.1"

    def __init__(self, planted):
        self.planted, self.seen, self.release = planted, [], threading.Event()
        balancer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_arguments):
                pass

            def send(self, status, content):
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                url = urllib.parse.urlsplit(self.path)
                name = self.headers["X-Request-Id"]
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                balancer.seen.append((name, self.headers["Connection"], self.headers["Idempotency-Key"]))
                failure = balancer.planted(name)
                if failure == "hang":
                    balancer.release.wait(30)
                if failure in ("drop", "hang"):
                    self.close_connection = True
                elif failure == "503":
                    self.send(503, {"error": {"message": "No replica can take this request now.", "code": 503}})
                elif failure == "not started":
                    self.send(503, {"error": {"message": "Not now.", "code": "turn_not_started"}})
                elif failure == "page":
                    self.send(200, b"<html>some page</html>")
                elif url.path == "/api/v1/health":
                    self.send(200, {"status": "degraded" if failure == "degraded" else "ok", "replica": "a"})
                elif url.path == "/api/v1/message":
                    self.send(200, {"reply": "yes", "replica": "b"})
                else:
                    self.stream(failure, json.loads(body)["messages"][0]["content"])

            do_POST = do_GET

            def stream(self, failure, text):
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for number in range(4):
                    if failure == "cut" and number == 2:
                        self.close_connection = True
                        return
                    content = text if number == 1 and failure != "other" else "x"
                    event = {"error": {"message": "failed"}} if failure == "event" and number == 3 else {"choices": [{"delta": {"content": content}}]}
                    self.piece(f"data: {json.dumps(event)}\n\n")
                if failure == "half":
                    self.piece('data: {"choices": [\n\n')
                if failure not in ("short", "half"):
                    self.piece("data: [DONE]\n\n")
                self.wfile.write(b"0\r\n\r\n")

            def piece(self, text):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(text.encode()), text.encode()))

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.cluster = types.SimpleNamespace(url=f"http://127.0.0.1:{self.server.server_port}", token="secret", replicas=())

    def close(self):
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def balancer():
    """Makes a small balancer; closed afterwards."""
    with contextlib.ExitStack() as stack:

        def make(planted=lambda _name: None):
            made = SmallBalancer(planted)
            stack.callback(made.close)
            return made

        yield make
