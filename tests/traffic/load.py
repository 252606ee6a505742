# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A steady load of GETs, messages and streams side by side. No request waits for the one before it, none is repeated."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import math
import threading
import time

import requests

from tests.history.load import CONNECT_TIMEOUT, Load, LoadOptions, classify, failure

from .evidence import CUT, FAILED, GET, OK, STREAM, UNSENT, Request, of_operation

MOST_A_SECOND = 100
MOST_SECONDS = 900
#: Requests of one kind that may be on their way at the same time.
MOST_AT_ONCE = 100
#: Seconds after its end in which a load may still send what it could not send in time.
LATENESS = 20


@dataclasses.dataclass(frozen=True)
class TrafficOptions:
    """``gets``, ``messages``, ``streams``: how many are sent a second. Each stream's answer is spread over ``stream_seconds``.

    The messages belong to ``conversations``, and a conversation's next message waits for its last one. The load ends by itself
    after ``seconds``. The load is one that a slow machine of two cores stands beside the change that is tested: see README.md.
    """

    gets: float = 10
    messages: float = 0.5
    streams: float = 0.15
    stream_seconds: float = 4
    conversations: int = 10
    seconds: float = 300

    def __post_init__(self):
        if self.seconds > MOST_SECONDS or max(self.gets, self.messages, self.streams) > MOST_A_SECOND:
            raise ValueError(f"at most {MOST_A_SECOND} requests of a kind a second, for at most {MOST_SECONDS} seconds")
        if self.messages <= 0:
            raise ValueError("without messages there is nothing for the history checker to judge")

    def of_messages(self):
        """The same for the history checker's load."""
        turns = max(1, math.ceil(self.messages * self.seconds / self.conversations))
        return LoadOptions(
            conversations=self.conversations, turns=turns, once=True, seconds=turns * self.conversations / self.messages, deadline=self.seconds + LATENESS
        )


class Traffic:
    """A load on its way: ``start``, look at ``answered``, ``stop``, ``join``. Its requests go to ``directory`` as JSON lines."""

    def __init__(self, cluster, options, directory):
        self.options = options
        self._url, self._headers = cluster.url, {"Authorization": f"Bearer {cluster.token}", "Connection": "close"}
        self._messages = Load(cluster, options.of_messages(), directory / "operations.jsonl")
        self.run = self._messages.run
        self._file = open(directory / "sent.jsonl", "w", encoding="utf-8")  # closed by join
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._requests = []
        #: replica -> when a GET that it answered was last sent.
        self.answered = {}

    def start(self):
        # The number of requests bounds the load; this only ends one that a slow machine delays.
        self._end = time.monotonic() + self.options.seconds + LATENESS
        self._messages.start()
        self._pools = [concurrent.futures.ThreadPoolExecutor(MOST_AT_ONCE) for _kind in range(2)]
        kinds = ((GET, self.options.gets, self._get), (STREAM, self.options.streams, self._stream))
        self._pacers = [
            threading.Thread(target=self._pace, args=(pool, *kind), daemon=True) for pool, kind in zip(self._pools, kinds, strict=True)
        ]
        for pacer in self._pacers:
            pacer.start()
        return self

    def begun(self):
        """Wait until every GET and every stream has been sent."""
        for pacer in self._pacers:
            pacer.join()

    def stop(self):
        """Begin nothing more; what is on its way is waited for by ``join``."""
        self._done.set()
        self._messages.stop()

    def join(self):
        """Wait for what is on its way. :returns: (requests in the order of their beginning, the messages as operations)"""
        operations, _gets = self._messages.join()
        for pacer in self._pacers:
            pacer.join()
        for pool in self._pools:
            pool.shutdown()
        self._file.close()
        sent = self._requests + [of_operation(one) for one in operations]
        return tuple(sorted(sent, key=lambda one: one.began)), operations

    def _pace(self, pool, kind, rate, send):
        """Send ``rate`` requests a second, whatever becomes of them."""
        if not rate:
            return
        began, room = time.monotonic(), threading.Semaphore(MOST_AT_ONCE)
        for number in range(math.ceil(rate * self.options.seconds)):
            due = began + number / rate
            if self._done.wait(max(0, due - time.monotonic())) or time.monotonic() > self._end:
                return
            name = f"{kind}-{self.run}-{number}"
            if room.acquire(blocking=False):
                pool.submit(self._send, room, send, kind, name, due)
            else:
                now = time.monotonic()
                self._keep(Request(kind, name, due, now, now, UNSENT, f"{MOST_AT_ONCE} on their way"))

    def _send(self, room, send, kind, name, due):
        began = time.monotonic()
        try:
            found = send(name)
        except requests.RequestException as error:
            found = {"outcome": FAILED, "error": failure(error)[1]}
        except Exception as error:  # a fault of ours must not look like a request that was never sent
            found = {"outcome": FAILED, "error": f"client: {type(error).__name__}: {error}"}
        finally:
            room.release()
        self._keep(Request(kind, name, due, began, time.monotonic(), **found))

    def _keep(self, request):
        with self._lock:
            self._requests.append(request)
            self._file.write(request.line())
            self._file.flush()
            if request.kind == GET and request.replica:
                self.answered[request.replica] = max(request.began, self.answered.get(request.replica, 0))

    def _get(self, name):
        """The route whose answer names the gateway: a balancer cannot have made it up."""
        response = requests.get(f"{self._url}/api/v1/health", headers={"X-Request-Id": name, "Connection": "close"}, timeout=(CONNECT_TIMEOUT, 10))
        content = _json(response)
        first = response.elapsed.total_seconds()
        replica = content.get("replica") if response.status_code == 200 and isinstance(content, dict) else None
        if not replica:
            error = _refusal(response.status_code, content) if response.status_code != 200 else "200 without a gateway"
            return {"outcome": FAILED, "error": error, "status": response.status_code, "first": first}
        return {"outcome": OK, "status": 200, "replica": replica, "said": content.get("status", ""), "first": first}

    def _stream(self, name):
        """One streamed answer. It must end with [DONE], and must hold what was asked."""
        began = time.monotonic()
        body = {
            "model": "openclaw/default",
            "stream": True,
            "user": name,
            "messages": [{"role": "user", "content": name}],
        }
        response = requests.post(
            f"{self._url}/v1/chat/completions",
            json=body,
            headers=self._headers | {"X-Request-Id": name},
            timeout=(CONNECT_TIMEOUT, 60),
            stream=True,
        )
        with contextlib.closing(response):
            if response.status_code != 200:
                return {"outcome": FAILED, "error": _refusal(response.status_code, _json(response)), "status": response.status_code}
            return {"status": 200} | _read_stream(response, name, began)


def _read_stream(response, wanted, began):
    """What became of a stream that has begun."""
    first, chunks, text, error = None, 0, "", ""
    try:
        for line in response.iter_lines(decode_unicode=True):
            if not line.startswith("data: "):
                continue
            first = time.monotonic() - began if first is None else first
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                outcome = FAILED if error or wanted not in text else OK
                return {"outcome": outcome, "error": error or ("" if outcome == OK else "another answer"), "first": first, "chunks": chunks}
            chunks += 1
            event = json.loads(data)
            if "error" in event:
                error = "error in the stream"
            for choice in event.get("choices", ()):
                text += choice.get("delta", {}).get("content") or ""
        error = error or "ended without [DONE]"
    except requests.RequestException as problem:
        error = failure(problem)[1]
    except ValueError:
        error = "half an event"
    return {"outcome": CUT, "error": error, "first": first, "chunks": chunks}


def _json(response):
    try:
        return response.json()
    except (ValueError, requests.RequestException):
        return None


def _refusal(status, content):
    return classify(status, content)[1]
