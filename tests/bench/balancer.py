# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m tests.bench.balancer CLUSTER``: what a balancer costs a request, measured beside a gateway without one.

Targets take turns in short slices, each round in another order, so that whatever else the machine does meets all of them alike; a figure is
the median of its rounds. The health path is loaded by wrk, because a client written in Python is slower than the balancers and would measure
itself; messages, which take a gateway a hundred times as long, by threads.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import pathlib
import re
import secrets
import shutil
import statistics
import subprocess
import threading
import time

import requests

from lab.shell import say, wait_for
from tests.history.cluster import Cluster
from tests.history.faults import execute, provider
from tests.history.run import warm_up
from tests.traffic.engines import answers, with_engine

from . import chart

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEALTH = "/api/v1/health"
#: What the role is told besides, by engine: a limit for each client would refuse what is to be measured.
UNLIMITED = {"haproxy": {}, "nginx": {}}
#: Seconds that the double takes for an answer.
MODEL_SECONDS = 0.25
ARTICLE_PORT, ARTICLE_UNIT = 18090, "bench-article"
#: Mission row 2, and nothing else but what a gateway insists on: the client's address.
ARTICLE = """
worker_processes auto;
pid /run/{unit}.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    log_format upstream '$remote_addr [$time_local] "$request" $status upstream=$upstream_addr time=$upstream_response_time';
    access_log /var/log/{unit}.log upstream;
    upstream gateways {{
        least_conn;
{servers}
    }}
    server {{
        listen {address}:{port};
        location /nginx-health {{ access_log off; return 200 "ok\\n"; }}
        location / {{
            proxy_pass http://gateways;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_next_upstream error timeout http_502 http_503;
            proxy_next_upstream_tries 2;
            proxy_next_upstream_timeout 5s;
            proxy_connect_timeout 5s;
            proxy_send_timeout 30s;
            proxy_read_timeout 60s;
            proxy_buffering off;
        }}
    }}
}}
"""
#: What wrk says at the end of a slice, in microseconds.
LUA = """
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('{"requests": %d, "microseconds": %d, "failed": %d, "p50": %d, "p95": %d, "p99": %d}\\n', summary.requests, summary.duration,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout, latency:percentile(50), latency:percentile(95), latency:percentile(99)))
end
"""


def article_config(address, replicas):
    """nginx with the article's settings in front of these replicas."""
    servers = "\n".join(f"        server {one['address']}:{one['port']} max_fails=3 fail_timeout=15s;" for one in replicas)
    return ARTICLE.format(unit=ARTICLE_UNIT, address=address, port=ARTICLE_PORT, servers=servers)


@contextlib.contextmanager
def article(cluster, balancer):
    """nginx with the article's settings on a balancer's host; yields its URL."""
    host = balancer["host"]
    config = article_config(balancer["address"], cluster.topology["replicas"])
    write = f"cat > /run/{ARTICLE_UNIT}.conf && nginx -t -q -c /run/{ARTICLE_UNIT}.conf"
    subprocess.run(["docker", "exec", "--interactive", cluster.containers[host], "sh", "-c", write], input=config, text=True, check=True, timeout=60)
    execute(cluster, host, "systemd-run", "--quiet", f"--unit={ARTICLE_UNIT}", "nginx", "-c", f"/run/{ARTICLE_UNIT}.conf", "-g", "daemon off;")
    url = f"http://{balancer['address']}:{ARTICLE_PORT}"
    try:
        wait_for("the article's nginx", lambda: answers(url))
        yield url
    finally:
        execute(cluster, host, "systemctl", "stop", f"{ARTICLE_UNIT}.service")
        execute(cluster, host, "rm", "-f", f"/run/{ARTICLE_UNIT}.conf", f"/var/log/{ARTICLE_UNIT}.log")


# ---- measuring


def wrk(url, connections, seconds, script):
    """One slice of GETs on the health path with connections that are kept. :returns: {"rate", "p50", "p95", "p99" in seconds}"""
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s", "--timeout", "10s", "--script", script, url + HEALTH]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 60)
    found = json.loads(done.stdout.splitlines()[-1])
    if found["failed"] or not found["requests"]:
        raise RuntimeError(f"{url}: {found['failed']} of {found['requests']} GETs failed: a limit of the balancer, or a sick replica?")
    rate = found["requests"] / found["microseconds"] * 1e6
    return {"rate": rate} | {name: found[name] / 1e6 for name in ("p50", "p95", "p99")}


def messages(url, token, clients, seconds):
    """One slice of messages; each client has a conversation and sends the next when the last is answered. :returns: seconds of each"""
    run, end, times, failed = secrets.token_hex(3), time.monotonic() + seconds, [], []

    def converse(client):
        try:
            with requests.Session() as session:
                for number in itertools.count():
                    began = time.monotonic()
                    if began >= end:
                        return
                    body = {"channel": "bench", "user_id": f"{run}-{client}", "message": f"message {number}"}
                    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": secrets.token_hex(8)}
                    session.post(f"{url}/api/v1/message", json=body, headers=headers, timeout=60).raise_for_status()
                    times.append(time.monotonic() - began)
        except requests.RequestException as error:
            failed.append(error)

    threads = [threading.Thread(target=converse, args=(client,)) for client in range(clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return times, time.monotonic() - began


def verdict(replica, count=200):
    """Seconds of so many questions to a replica's verdict, each on a connection of its own."""
    times = []
    for _number in range(count):
        began = time.monotonic()
        connection = http.client.HTTPConnection(replica["address"], replica["verdict_port"], timeout=10)
        connection.request("GET", "/health")
        body = connection.getresponse().read()
        connection.close()
        times.append(time.monotonic() - began)
        if b'"checks"' not in body:
            raise RuntimeError(f"{replica['id']}: this is no verdict: {body[:200]!r}")
    return figures(times)


def figures(times):
    cuts = statistics.quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
    return {"count": len(times), "p50": cuts[49], "p95": cuts[94], "p99": cuts[98]}


def order(names, number):
    """The names, beginning with another one each round, and every second round backwards."""
    turned = names[number % len(names) :] + names[: number % len(names)]
    return turned[::-1] if number % 2 else turned


def median_of(slices):
    """{figure: median over the slices} of a list of dictionaries with the same keys."""
    return {name: statistics.median(one[name] for one in slices) for name in slices[0]}


def measure(targets, token, rounds, script):
    """Everything about these targets (name -> URL). :returns: {"health": ..., "messages": ...}, each by target"""
    single, many = ({name: [] for name in targets} for _kind in range(2))
    for number in range(rounds):
        for name in order(list(targets), number):
            single[name].append(wrk(targets[name], 1, 1, script))
            many[name].append(wrk(targets[name], 16, 2, script))
    health = {name: median_of(single[name]) | {"rate": statistics.median(one["rate"] for one in many[name])} for name in targets}
    times, lasted = {name: [] for name in targets}, dict.fromkeys(targets, 0.0)
    for number in range(rounds):
        for name in order(list(targets), number):
            found, seconds = messages(targets[name], token, 3, 4)
            times[name] += found
            lasted[name] += seconds
    said = {name: figures(times[name]) | {"rate": len(times[name]) / lasted[name]} for name in targets}
    return {"health": health, "messages": said}


def machine():
    """What the figures were measured on."""
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return {"cores": os.cpu_count(), "cpu": model[1] if model else "unknown", "load": [round(value, 1) for value in os.getloadavg()]}


def table(result):
    """The result as Markdown lines."""

    def row(name, found):
        times = " | ".join(f"{found[share] * 1000:.2f} ms" if found[share] < 0.01 else f"{found[share] * 1000:.0f} ms" for share in ("p50", "p95", "p99"))
        rate = f"{found['rate']:,.0f}" if found["rate"] >= 100 else f"{found['rate']:.1f}"
        return f"| {name} | {times} | {rate} |"

    lines = []
    for what, title in (("health", f"`GET {HEALTH}`"), ("messages", f"`POST /api/v1/message`, model {MODEL_SECONDS} s")):
        lines += [f"| {title} | p50 | p95 | p99 | requests/s |", "|---|---|---|---|---|"]
        lines += [*(row(name, found) for name, found in result[what].items()), ""]
    if result["verdict"]:
        found = result["verdict"]
        lines.append(f"The verdict of a replica: p50 {found['p50'] * 1000:.1f} ms, p95 {found['p95'] * 1000:.1f} ms, p99 {found['p99'] * 1000:.1f} ms.")
    return lines


def picture(result):
    """The result as an SVG."""
    panels = []
    for what, title in (("health", f"GET {HEALTH}"), ("messages", f"POST /api/v1/message, model {MODEL_SECONDS} s")):
        found = result[what]
        panels.append((f"{title}: ms (p50, p95, p99)", {name: [one[share] * 1000 for share in ("p50", "p95", "p99")] for name, one in found.items()}))
        panels.append((f"{title}: requests/s", {name: [one["rate"]] for name, one in found.items()}))
    return chart.bars(panels)


def main():
    parser = argparse.ArgumentParser(prog="tests.bench.balancer", description=__doc__)
    parser.add_argument("cluster", nargs="?", default="demo", help="a lab cluster that is up, with two balancers")
    parser.add_argument("--rounds", type=int, default=4, help="slices of each kind and target")
    parser.add_argument("--without", action="append", default=[], choices=("haproxy", "nginx", "article"), help="a target to leave out")
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is needed: lab/bootstrap installs it")
    cluster = Cluster.of_lab(given.cluster)
    replicas, balancers = cluster.topology["replicas"], cluster.topology["balancers"]
    script = ROOT / ".cache" / "bench" / "wrk.lua"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(LUA)
    with contextlib.ExitStack() as stack:
        targets = {"direct": f"http://{replicas[0]['address']}:{replicas[0]['port']}"}
        for name, balancer in (("haproxy", balancers[0]), ("nginx", balancers[-1])):
            if name not in given.without:
                say(f"{name} on {balancer['host']}")
                stack.enter_context(with_engine(cluster, name, balancer["host"], **UNLIMITED[name]))
                targets[name] = f"http://{balancer['address']}:{balancer['port']}"
        if "article" not in given.without:
            targets["article's nginx"] = stack.enter_context(article(cluster, balancers[-1]))
        warm_up(cluster)
        say("measuring")
        began, before = time.monotonic(), machine()
        stack.enter_context(provider(cluster, "slow", seconds=MODEL_SECONDS))
        result = measure(targets, cluster.token, given.rounds, script)
        result["verdict"] = verdict(replicas[0]) if "verdict_port" in replicas[0] else None
        result |= {"seconds": round(time.monotonic() - began, 1), "machine": {"before": before, "after": machine()}, "rounds": given.rounds}
    for suffix, text in ((".json", json.dumps(result, indent=2) + "\n"), (".svg", picture(result))):
        (ROOT / ".cache" / "bench" / f"balancer{suffix}").write_text(text)
    print("\n".join(table(result)))
    print(f"\n.cache/bench/balancer.json, .cache/bench/balancer.svg: {result['seconds']} s, load {result['machine']['after']['load'][0]}")


if __name__ == "__main__":
    main()
