# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients that hold many conversations at once and write down what they saw. Bounded; stops by itself."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import json
import secrets
import threading
import time

import requests
import urllib3.exceptions

from .history import OK, REFUSED, UNKNOWN, Attempt, Get, Operation, operation_record

#: The LLM double remembers 5,000 calls, and a turn may take more than one.
MOST_TURNS = 3000
MOST_CLIENTS = 200
#: A client that is told no longer time to wait than this, waits this long, in seconds.
LONGEST_PAUSE = 5
CONNECT_TIMEOUT = 3


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """What the clients do.

    ``turns`` are those of one client; with ``clients`` 2, two of them share a conversation. ``route``: ``balancer``,
    or ``replicas``: straight to one after another, two clients beginning at different ones. ``twins``: every message is
    delivered to two replicas at once, as by a webhook that fires twice. ``repeat``: every so many turns an answered
    message is sent once more (0: never). ``once``: every message is sent once, on a connection of its own, with its key
    in the address too, where a balancer's log shows it: what this client sees is what counts. ``seconds``: each client
    spreads its turns over so many seconds, one client after the other (0: as fast as it
    goes). ``gets``: GETs of the health route a second. A turn is given up after ``patience`` seconds, the whole load
    after ``deadline``.
    """

    conversations: int = 20
    turns: int = 20
    clients: int = 1
    route: str = "balancer"
    twins: bool = False
    repeat: int = 5
    once: bool = False
    seconds: float = 0
    gets: float = 0
    attempt_timeout: float = 60
    patience: float = 180
    deadline: float = 1200
    channel: str = "web"

    def __post_init__(self):
        if self.route not in ("balancer", "replicas"):
            raise ValueError(f"route is 'balancer' or 'replicas', not {self.route!r}")
        clients = self.conversations * self.clients
        if clients > MOST_CLIENTS or clients * self.turns > MOST_TURNS:
            raise ValueError(f"at most {MOST_CLIENTS} clients and {MOST_TURNS} turns in one run")


def classify(status, body):
    """What an HTTP response to a turn means: (outcome, kind of error).

    Refused is what says of itself that it left no trace. The balancer's own errors do not: before it gave up it may
    have tried a replica that died after taking the turn. Neither does a turn that failed half-way or still runs.

    :param body: decoded JSON, or None
    """
    if status == 200 and isinstance(body, dict) and isinstance(body.get("reply"), str):
        return OK, ""
    error = body.get("error") if isinstance(body, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    from_balancer = not isinstance(error, dict) or isinstance(code, int)
    kind = f"{status} {'balancer' if isinstance(code, int) else code or 'without a code'}"
    clear = 400 <= status < 500 and status != 408 or status in (502, 503)
    if clear and not from_balancer and code not in ("request_in_progress", "outcome_unknown"):
        return REFUSED, kind
    return UNKNOWN, kind


def failure(error):
    """What an exception of ``requests`` means: (outcome, kind of error). Without a connection nothing was done."""
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    if isinstance(error, requests.ConnectTimeout) or isinstance(reason, urllib3.exceptions.NewConnectionError):
        return REFUSED, "no connection"
    if isinstance(error, requests.Timeout):
        return UNKNOWN, "no answer in time"
    return UNKNOWN, "connection lost"


class Load:
    """A load on its way: ``start``, look at ``acknowledged``, ``join``. Its operations go to ``path`` as JSON lines."""

    def __init__(self, cluster, options, path, run=None):
        self.options = options
        #: Six hex digits that are in every token of this load.
        self.run = run or secrets.token_hex(3)
        self.acknowledged = 0
        self._urls = [cluster.url] if options.route == "balancer" else [f"http://{one}" for one in cluster.replicas]
        self._twin_urls = [f"http://{one}" for one in cluster.replicas]
        self._health = f"{cluster.url}/api/v1/health"
        self._headers = {"Authorization": f"Bearer {cluster.token}"}
        self._file = open(path, "w", encoding="utf-8")  # closed by join
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._operations, self._gets, self._failed = [], [], []

    def user(self, conversation):
        return f"{self.run}-{conversation}"

    def start(self):
        options = self.options
        self._began = time.monotonic()
        self._end = self._began + options.deadline
        pairs = itertools.product(range(options.conversations), range(options.clients))
        self._clients = [self._thread(self._converse, *pair) for pair in pairs]
        self._getter = self._thread(self._get_steadily) if options.gets else None
        return self

    def _thread(self, work, *arguments):
        def guarded():
            try:
                work(*arguments)
            except Exception as error:  # told by join, in the thread that can act on it
                self._failed.append(error)

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    @property
    def running(self):
        return any(thread.is_alive() for thread in self._clients)

    def stop(self):
        """Begin no more turns and no more requests."""
        self._done.set()

    def join(self):
        """Wait for the clients. :returns: (operations, gets)"""
        for thread in self._clients:
            thread.join()
        self._done.set()
        if self._getter:
            self._getter.join()
        self._file.close()
        if self._failed:
            raise self._failed[0]
        return tuple(self._operations), tuple(self._gets)

    def _converse(self, conversation, client):
        options = self.options
        share = (conversation * options.clients + client) / (options.conversations * options.clients)
        with requests.Session() as session:
            for number in range(options.turns):
                due = self._began + (number + share) * options.seconds / options.turns
                if self._done.wait(max(0, due - time.monotonic())) or time.monotonic() > self._end:
                    return
                operation = self._turn(session, conversation, client, number)
                with self._lock:
                    self._operations.append(operation)
                    self._file.write(json.dumps(operation_record(operation)) + "\n")
                    self._file.flush()

    def _turn(self, session, conversation, client, number):
        """One turn, repeated with its key until it is answered, refused for good or given up."""
        options = self.options
        token = f"turn-{self.run}-{conversation}-{client}-{number}"
        message = f"{token}: message {number} of client {client}"
        body = {"channel": options.channel, "user_id": self.user(conversation), "message": message}
        urls = itertools.islice(itertools.cycle(self._urls), conversation + client + number, None)
        end = min(time.monotonic() + options.patience, self._end)

        def send(url, using=session):
            timeout = max(1, min(options.attempt_timeout, end - time.monotonic()))
            return self._attempt(using, url, body, token, timeout)

        if options.twins:
            first = number % len(self._twin_urls)
            pair = (self._twin_urls * 2)[first : first + 2]
            with concurrent.futures.ThreadPoolExecutor(2) as pool, requests.Session() as second:
                results = list(pool.map(send, pair, (session, second)))
        else:
            results = [send(next(urls))]
        while not options.once and not any(attempt.outcome == OK for attempt, _pause in results):
            pause = results[-1][1]
            if pause is None or time.monotonic() + pause > end or self._done.wait(pause):
                break
            results.append(send(next(urls)))
        attempts = [attempt for attempt, _pause in results]
        if any(attempt.outcome == OK for attempt in attempts):
            with self._lock:
                self.acknowledged += 1
            if options.repeat and not options.once and number % options.repeat == 0:
                attempts.append(send(next(urls))[0])
        attempts.sort(key=lambda attempt: attempt.invoked)
        name = f"{options.channel}:{self.user(conversation)}"
        return Operation(name, client, number, token, message, tuple(attempts))

    def _attempt(self, session, url, body, key, timeout):
        """One request. :returns: (attempt, seconds to wait before the next one; None: repeating it is no use)"""
        invoked = time.monotonic()
        via = url.removeprefix("http://")
        headers = self._headers | {"Idempotency-Key": key, "X-Request-Id": key}
        if self.options.once:
            headers["Connection"] = "close"
        try:
            response = session.post(f"{url}/api/v1/message", json=body, headers=headers, timeout=(CONNECT_TIMEOUT, timeout))
        except requests.RequestException as error:
            outcome, kind = failure(error)
            return Attempt(invoked, time.monotonic(), via, outcome, error=kind), 0.25
        returned = time.monotonic()
        try:
            content = response.json()
        except ValueError:
            content = None
        outcome, kind = classify(response.status_code, content)
        given = content if outcome == OK else {}
        attempt = Attempt(
            invoked, returned, via, outcome, response.status_code, kind, given.get("reply"), given.get("replica")
        )
        return attempt, _pause(outcome, response.headers.get("Retry-After"))

    def _get_steadily(self):
        with requests.Session() as session:
            while not self._done.wait(1 / self.options.gets):
                invoked = time.monotonic()
                try:
                    response = session.get(self._health, timeout=(CONNECT_TIMEOUT, 10))
                    status, error = response.status_code, "" if response.ok else str(response.status_code)
                except requests.RequestException as problem:
                    status, error = None, failure(problem)[1]
                self._gets.append(Get(invoked, time.monotonic(), status, error))


def _pause(outcome, retry_after):
    """Seconds before a message is sent again: what the server asked for, within reason; a plain refusal is final."""
    if retry_after and retry_after.isdigit():
        return min(int(retry_after), LONGEST_PAUSE)
    return None if outcome == REFUSED else 0.25
