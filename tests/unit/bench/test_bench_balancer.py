"""The benchmark's own parts, with the real wrk and the real nginx on loopback."""

import http.server
import json
import pathlib
import re
import shutil
import subprocess
import threading
import xml.etree.ElementTree

import pytest

from tests.bench import balancer as bench
from tests.bench import chart
from tests.ports import free_port


class Server:
    """Answers every request with one status, and the verdict's or the message's JSON."""

    def __init__(self, status=200):
        self.seen = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_arguments):
                pass

            def do_GET(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server.seen.append((self.path, dict(self.headers), body))
                answer = b'{"replica": "a", "checks": {}}'
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_GET

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server():
    made = []

    def make(status=200):
        made.append(Server(status))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "wrk.lua"
    path.write_text(bench.LUA)
    return path


def test_wrk_measures_a_slice(server, script):
    one = server()
    found = bench.wrk(one.url, 1, 1, script)
    assert found.keys() == {"rate", "p50", "p95", "p99"}
    assert 0 < found["p50"] <= found["p95"] <= found["p99"] < 1
    assert found["rate"] == pytest.approx(len(one.seen), rel=0.2) and {path for path, _headers, _body in one.seen} == {bench.HEALTH}


def test_a_slice_in_which_something_failed_is_no_figure(server, script):
    with pytest.raises(RuntimeError, match=r"[1-9]\d* of \d+ GETs failed"):
        bench.wrk(server(429).url, 1, 1, script)


def test_messages_are_turns_with_keys(server):
    one = server()
    times, seconds = bench.messages(one.url, "secret", 2, 0.2)
    assert len(times) == len(one.seen) >= 2 and 0.2 <= seconds < 5
    keys = [headers["Idempotency-Key"] for _path, headers, _body in one.seen]
    assert len(set(keys)) == len(keys)
    assert {json.loads(body)["channel"] for _path, _headers, body in one.seen} == {"bench"}


def test_a_message_that_is_refused_ends_the_benchmark(server):
    with pytest.raises(OSError, match="503"):
        bench.messages(server(503).url, "secret", 1, 0.2)


def test_a_verdict_is_asked_again_and_again(server):
    one = server()
    assert bench.verdict({"id": "a", "address": "127.0.0.1", "verdict_port": one.port}, 20)["count"] == len(one.seen) == 20


def test_every_target_is_first_and_last_as_often():
    names = ["a", "b", "c", "d"]
    rounds = [bench.order(names, number) for number in range(4)]
    assert all(sorted(one) == names for one in rounds)
    assert len({one[0] for one in rounds}) > 1 and len({one[-1] for one in rounds}) > 1


def test_figures():
    found = bench.figures([number / 100 for number in range(101)])
    assert (found["count"], found["p50"], found["p95"], found["p99"]) == (101, 0.5, 0.95, 0.99)
    assert bench.figures([2.0])["p99"] == 2.0
    assert bench.median_of([{"a": 1}, {"a": 9}, {"a": 2}]) == {"a": 2}


def test_a_table_and_a_picture_are_made_of_a_result():
    one = {"p50": 0.001, "p95": 0.0123, "p99": 0.5, "rate": 12345.6}
    result = {"health": {"direct": one}, "messages": {"direct": one | {"rate": 3.21}}, "verdict": one}
    lines = bench.table(result)
    assert "| direct | 1.00 ms | 12 ms | 500 ms | 12,346 |" in lines and "| direct | 1.00 ms | 12 ms | 500 ms | 3.2 |" in lines
    assert lines[-1].startswith("The verdict of a replica: p50 1.0 ms, p95 12.3 ms")
    picture = bench.picture(result)
    assert "direct" in picture and "12,346" in picture


def test_a_chart_is_drawn_to_scale():
    root = xml.etree.ElementTree.fromstring(chart.bars([("A & B", {"one": [10.0, 5.0], "two": [0.0]})]))
    widths = [float(shape.get("width")) for shape in root.iter("{http://www.w3.org/2000/svg}rect")][1:]
    assert widths[0] == 2 * widths[1] > 0 and widths[2] == 0
    assert chart.said(1234.5) == "1,234" and chart.said(0.1234) == "0.123"


# ---- the article's nginx


def test_the_articles_settings_are_those_of_the_mission(server, tmp_path):
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    assert program, "nginx is not installed: run lab/bootstrap"
    behind = server()
    port = free_port()
    text = bench.article_config("127.0.0.1", [{"address": "127.0.0.1", "port": behind.port}])
    for wanted in ("least_conn;", "max_fails=3 fail_timeout=15s", "proxy_next_upstream error timeout http_502 http_503;", "proxy_buffering off;"):
        assert wanted in text
    text = re.sub(r"/(run|var/log)/", f"{tmp_path}/", text).replace(f":{bench.ARTICLE_PORT}", f":{port}")
    config = tmp_path / "nginx.conf"
    config.write_text(text)
    process = subprocess.Popen([program, "-c", str(config), "-g", f"daemon off; user {pathlib.Path(tmp_path).owner()};"], stderr=subprocess.PIPE, text=True)
    try:
        bench.wait_for("nginx", lambda: bench.answers(f"http://127.0.0.1:{port}"), 20)
        assert behind.seen[-1][1]["X-Forwarded-For"] == "127.0.0.1"
        assert "upstream=127.0.0.1:" in (tmp_path / f"{bench.ARTICLE_UNIT}.log").read_text()
    finally:
        process.terminate()
        process.communicate(timeout=20)
