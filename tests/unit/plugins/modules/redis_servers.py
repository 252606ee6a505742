"""Real Redis servers and Sentinels on loopback, and a client that writes all the time and remembers what was acknowledged."""

import shutil
import signal
import subprocess
import threading
import time

import redis

from tests.ports import free_port

NAME = "openclaw"
SETTINGS = ("repl-diskless-sync-delay 0", "repl-ping-replica-period 1", "appendonly yes", "enable-debug-command yes")


def wait_for(what, probe, seconds=30):
    """What ``probe`` returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what}: not seen within {seconds} s"
        time.sleep(0.05)  # between two looks


class Cluster:
    """One primary, ``replicas`` replicas, ``sentinels`` Sentinels; each process in a directory of its own, ended by its pid.

    With ``upstream``, a node of another cluster, all its servers follow that one, and its Sentinels watch nobody: a standby.
    """

    def __init__(self, directory, replicas=2, sentinels=3, upstream=None):
        self.directory = directory
        self.processes = {}
        self.configs = {}
        self.redis = []
        self.sentinels = []
        for number in range(1, replicas + 2):
            primary = upstream or (self.redis[0] if self.redis else None)
            follow = [f"replicaof 127.0.0.1 {primary['port']}"] if primary else []
            follow += ["replica-priority 0"] if upstream else []
            self.redis.append(self._start(f"node{number}", "redis-server", *SETTINGS, *follow))
        watch = [
            f"sentinel monitor {NAME} 127.0.0.1 {self.redis[0]['port']} 2",
            f"sentinel down-after-milliseconds {NAME} 3000",
            f"sentinel failover-timeout {NAME} 10000",
        ]
        for number in range(1, sentinels + 1):
            self.sentinels.append(self._start(f"watch{number}", "redis-sentinel", *([] if upstream else watch)))

    @property
    def arguments(self):
        """What the modules take."""
        return {"redis": self.redis, "sentinels": self.sentinels, "name": NAME, "quorum": 2, "timeout": 1}

    def _start(self, host, program, *lines):
        assert shutil.which(program), f"{program} is needed by this test: apt-get install {program}"
        port = free_port()
        home = self.directory / host
        home.mkdir()
        config = home / "server.conf"
        config.write_text("\n".join([f"port {port}", "bind 127.0.0.1", f"dir {home}", *lines]) + "\n")
        config.with_name("settings.conf").write_text("")
        self.configs[host] = (program, config)
        self.run(host)
        return {"host": host, "address": "127.0.0.1", "port": port}

    def run(self, host):
        program, config = self.configs[host]
        log = open(config.parent / "log", "a", encoding="utf-8")
        # As the role starts it: what is included last is not rewritten by Redis.
        included = ["--include", str(config.with_name("settings.conf"))] if program == "redis-server" else []
        self.processes[host] = subprocess.Popen([program, str(config), *included], stdout=log, stderr=subprocess.STDOUT)

    def signal(self, host, number):
        self.processes[host].send_signal(number)

    def kill(self, host):
        process = self.processes.pop(host)
        process.kill()
        process.wait(timeout=10)

    def stop(self):
        for host in list(self.processes):
            self.signal(host, signal.SIGCONT)
            self.kill(host)

    def client(self, node, timeout=2):
        return redis.Redis(host=node["address"], port=node["port"], decode_responses=True, socket_timeout=timeout)

    def node(self, host):
        return next(node for node in [*self.redis, *self.sentinels] if node["host"] == host)

    def at(self, address):
        return next(node for node in self.redis if f"{node['address']}:{node['port']}" == address)

    def named(self):
        """The primary that the first answering Sentinel names, as a dict."""
        for sentinel in self.sentinels:
            try:
                address, port = self.client(sentinel).execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
                return self.at(f"{address}:{port}")
            except redis.RedisError:
                continue
        return None


class Writer:
    """Writes one key after the other. As a client does, it stays with its connection until that breaks, then asks Sentinel."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.acknowledged = []
        self.longest_gap = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def __enter__(self):
        self._thread.start()
        wait_for("the first writes", lambda: len(self.acknowledged) > 20)
        return self

    def __exit__(self, *error):
        self._end.set()
        self._thread.join(timeout=60)

    def _write(self):
        client, last, number = None, time.monotonic(), 0
        while not self._end.is_set():
            number += 1
            try:
                client = client or self.cluster.client(self.cluster.named(), timeout=40)
                client.set(f"written:{id(self)}:{number}", number)
            except (redis.RedisError, AttributeError):
                client = None
                time.sleep(0.02)  # before asking Sentinel again
                continue
            now = time.monotonic()
            self.longest_gap, last = max(self.longest_gap, now - last), now
            self.acknowledged.append(number)
            time.sleep(0.0005)  # so that it is a client, not a load test

    def lost(self):
        """Numbers that were acknowledged and are not on the primary."""
        client = self.cluster.client(self.cluster.named())
        found = client.mget([f"written:{id(self)}:{number}" for number in self.acknowledged])
        return [number for number, value in zip(self.acknowledged, found) if value is None]
