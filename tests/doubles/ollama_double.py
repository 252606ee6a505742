#!/usr/bin/env python
# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for the ``ollama`` program. There is no language model in it.

It takes the place of Ollama's binary on the lab's hosts, so that tests can see that a gateway reached its local
fallback, and with which messages. It knows as much of Ollama's command line and HTTP API as the role ``ollama`` and the
OpenClaw gateway use:

    ollama --version | serve | list | pull NAME | create NAME -f FILE | show NAME
    GET /api/version /api/tags, POST /api/show /api/chat /api/pull /api/create

An answer says who gave it and which user messages it was shown: ``ollama seen 2 user messages: "hello" | "and now?"``.
Models are names only; a name with "missing" in it cannot be pulled. They are kept in ``$OLLAMA_MODELS`` when that is
set.

For tests, on the same port: GET /requests, DELETE /requests, GET /behaviour, POST /behaviour (see README.md beside this
file).

Standard library only. This file works when copied alone; ``llm_double.py`` imports the common parts from here.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import http.server
import json
import os
import pathlib
import re
import select
import socket
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

VERSION = "0.13.5"
LARGEST_BODY = 16 * 1024 * 1024
#: No connection is held longer than this, whatever the behaviour says, in seconds.
LONGEST_HOLD = 900
#: How much of the past is kept: whichever of the two is reached first. Bytes are those of the stored JSON.
MOST_REQUESTS = 5000
MOST_BYTES = 64 * 1024 * 1024
RECORDED_HEADERS = ("user-agent", "content-type", "accept", "idempotency-key", "traceparent", "x-request-id")


# ---- what the model was shown, and what it says: pure --------------------------------------------------------------

# What OpenClaw adds to user messages: the time before each, a line about itself after the first one, a remark before
# one that it sends again to the next provider, and blocks of its own, inside a message or as one.
TIMESTAMP = re.compile(r"^\[(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) \d{4}-\d\d-\d\d \d\d:\d\d(?::\d\d)?(?: [^\]\n]{1,40})?\] ")
RUNTIME = re.compile(r"\n\nRuntime: agent=[^\n]*\Z")
RETRY = re.compile(r"^\[Retry after the previous model attempt failed or timed out\]\n\n")
CONTEXT = re.compile(r"Conversation info: \u27e6openclaw:ctx\u27e7\n```json\n.*?\n```\n+", re.DOTALL)
BLOCKS = re.compile(
    r"<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>.*?(?:<<<END_OPENCLAW_INTERNAL_CONTEXT>>>|\Z)|<turn_aborted>.*?</turn_aborted>",
    re.DOTALL,
)


def text_of(content):
    """The text of a message's content, which is a string or a list of parts; images and the like count as nothing."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(
            part.get("text", "") for part in content if isinstance(part, dict) and part.get("type") == "text"
        )
    return ""


def said(message):
    """What the user really said in a user message, without OpenClaw's decorations; "" when it holds nothing else."""
    text = TIMESTAMP.sub("", BLOCKS.sub("", text_of(message.get("content"))).strip() + " ").strip()
    return CONTEXT.sub("", RETRY.sub("", RUNTIME.sub("", text)))


def user_messages(messages):
    """What the user said, oldest first."""
    texts = (said(message) for message in messages if message.get("role") == "user")
    return [text for text in texts if text]


def answer(messages, name="", longest=200, most=40):
    """The deterministic answer, marked with ``name``: how many user messages were shown, and which, as JSON strings.

    Texts over ``longest`` characters are cut; of more than ``most`` messages the first and the last are quoted.
    """
    texts = user_messages(messages)
    quotes = [
        json.dumps(text if len(text) <= longest else text[:longest] + "...", ensure_ascii=False) for text in texts
    ]
    if len(quotes) > most:
        quotes = quotes[: most // 2] + [f"({len(quotes) - most} more)"] + quotes[-(most // 2) :]
    plural = "" if len(texts) == 1 else "s"
    return f"{name} seen {len(texts)} user message{plural}: {' | '.join(quotes)}".strip()


def tool_rounds(messages):
    """How many times the model has asked for tools since the user last spoke."""
    rounds = 0
    for message in reversed(messages):
        if message.get("role") == "user" and said(message):
            break
        if message.get("role") == "assistant" and message.get("tool_calls"):
            rounds += 1
    return rounds


def pieces(text, most=20):
    """A text cut into at most ``most`` pieces at word ends, for streaming."""
    words = re.findall(r"\S+\s*|\s+", text)
    step = max(1, -(-len(words) // most))
    return ["".join(words[start : start + step]) for start in range(0, len(words), step)]


def tokens(text):
    """A rough count of tokens: four characters each."""
    return max(1, len(text) // 4)


def prompt_tokens(messages):
    return sum(tokens(text_of(message.get("content"))) for message in messages)


# ---- misbehaving on demand -----------------------------------------------------------------------------------------

ERROR_MODES = {"401": 401, "429": 429, "500": 500, "503": 503, "context_overflow": 400}
SLOW_MODES = ("slow", "slow_first_token")
MODES = ("ok", *ERROR_MODES, "hang", "refuse", *SLOW_MODES, "tool")


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """How model calls are answered; README.md explains the fields."""

    mode: str = "ok"
    seconds: float | None = None
    match: str = ""
    times: int | None = None
    tool: str = ""
    arguments: dict = dataclasses.field(default_factory=dict)
    calls: int = 1
    rounds: int = 1

    @property
    def delay(self):
        """Seconds that an answer takes."""
        return (5.0 if self.seconds is None else self.seconds) if self.mode in SLOW_MODES else 0.0

    @property
    def duration(self):
        """Seconds that the behaviour lasts; None means until it is changed."""
        if self.mode in SLOW_MODES:
            return None
        return 10.0 if self.mode == "refuse" and self.seconds is None else self.seconds


def parse_behaviour(body):
    """A behaviour from the decoded JSON of POST /behaviour.

    :raises ValueError: with one sentence that names what is wrong
    """
    if not isinstance(body, dict):
        raise ValueError("the behaviour must be a JSON object")
    unknown = sorted(set(body) - {field.name for field in dataclasses.fields(Behaviour)})
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}")
    values = {**body, "mode": str(body.get("mode", "ok"))}
    if values["mode"] not in MODES:
        raise ValueError(f"unknown mode {values['mode']!r}; known are {', '.join(MODES)}")
    seconds = values.get("seconds")
    if seconds is not None and (
        isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= LONGEST_HOLD
    ):
        raise ValueError(f"seconds must be a number from 0 to {LONGEST_HOLD}")
    for name in ("times", "calls", "rounds"):
        value = values.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a whole number above 0")
    for name, kind in (("match", str), ("tool", str), ("arguments", dict)):
        if name in values and not isinstance(values[name], kind):
            raise ValueError(f"{name} must be of type {kind.__name__}")
    return Behaviour(**values)


class Switch:
    """The current behaviour. Thread-safe; it falls back to ``ok`` when its time or its number of calls has run out."""

    def __init__(self, clock=time.monotonic):
        self._clock = clock
        self._lock = threading.Lock()
        self._behaviour = Behaviour()
        self._until = None
        self._left = None
        self.changes = 0

    def set(self, behaviour):
        with self._lock:
            self.changes += 1
            self._behaviour = behaviour
            self._left = behaviour.times
            self._until = None if behaviour.duration is None else self._clock() + behaviour.duration

    def _now(self):
        if self._left == 0 or (self._until is not None and self._clock() >= self._until):
            self._behaviour, self._left, self._until = Behaviour(), None, None
        return self._behaviour

    def current(self):
        with self._lock:
            return self._now()

    def take(self, text):
        """The behaviour for one model call whose newest user message is ``text``; counts it against ``times``."""
        with self._lock:
            behaviour = self._now()
            if behaviour.mode == "ok" or behaviour.match not in text:
                return Behaviour()
            if self._left is not None:
                self._left -= 1
            return behaviour


# ---- what was received ---------------------------------------------------------------------------------------------


class Recorder:
    """The latest model calls, bounded in number and bytes. Thread-safe."""

    def __init__(self, most_requests=MOST_REQUESTS, most_bytes=MOST_BYTES):
        self._lock = threading.Lock()
        self._most = (most_requests, most_bytes)
        self._records = collections.deque()
        self._bytes = 0
        self._next = 1

    def add(self, body, headers):
        """Record a call and return its record; ``finish`` completes it."""
        messages = [_without_system_text(message) for message in body.get("messages", [])]
        key = headers.get("Authorization", "")
        record = {
            "id": 0,
            "time": round(time.time(), 3),
            "seconds": None,
            "outcome": "in progress",
            "model": body.get("model"),
            "stream": bool(body.get("stream")),
            "user_messages": user_messages(messages),
            "messages": messages,
            "tools": sorted(tool.get("function", {}).get("name", "") for tool in body.get("tools") or []),
            "headers": {name: headers[name] for name in RECORDED_HEADERS if headers.get(name)}
            | {name.lower(): headers[name] for name in headers if name.lower().startswith("x-openclaw-")},
            # Enough to tell two keys apart, useless for anything else.
            "key_fingerprint": hashlib.sha256(key.encode()).hexdigest()[:12] if key else None,
        }
        size = len(json.dumps(record))
        with self._lock:
            record["id"] = self._next
            self._next += 1
            self._records.append((size, record))
            self._bytes += size
            while len(self._records) > self._most[0] or (self._bytes > self._most[1] and len(self._records) > 1):
                self._bytes -= self._records.popleft()[0]
        return record

    def finish(self, record, outcome):
        """Write how the call ended; only the first verdict counts."""
        with self._lock:
            if record["outcome"] == "in progress":
                record["outcome"] = outcome
                record["seconds"] = round(time.time() - record["time"], 3)

    def list(self, since=0, match=""):
        """Records with an id above ``since`` in which some user message contains ``match``, oldest first."""
        with self._lock:
            return [
                dict(record)
                for _size, record in self._records
                if record["id"] > since and (not match or any(match in text for text in record["user_messages"]))
            ]

    def clear(self):
        with self._lock:
            self._records.clear()
            self._bytes = 0


def _without_system_text(message):
    """System prompts are tens of kilobytes and always the same: only their length is recorded."""
    if message.get("role") in ("system", "developer"):
        return {**message, "content": f"({len(text_of(message.get('content')))} characters)"}
    return message


# ---- HTTP ----------------------------------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that goes away is no error
            super().handle_error(request, client_address)


class Double:
    """A double's listeners and everything its handler threads share.

    The API is served on ``port`` (0: any free one). With ``control_port`` the control paths are served there too, and
    go on being served while the mode ``refuse`` keeps the API's socket closed.
    """

    def __init__(self, handler, host="127.0.0.1", port=0, control_port=None, **attributes):
        self.switch = Switch()
        self.recorder = Recorder()
        self._handler = type(handler.__name__, (handler,), {"double": self, **attributes})
        self._lock = threading.Lock()
        self._generation = 0
        self._api = self._listen(host, port)
        self.host, self.port = self._api.server_address[:2]
        self._control = None
        if control_port is not None:
            self._control = self._listen(host, control_port, control_only=True)
            self.control_port = self._control.server_address[1]

    def _listen(self, host, port, control_only=False):
        server = Server((host, port), type(self._handler.__name__, (self._handler,), {"control_only": control_only}))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server

    def behave(self, behaviour):
        """Change the behaviour; ``refuse`` closes the listening socket, any other opens it again."""
        with self._lock:
            self._generation += 1
            self.switch.set(behaviour)
            if behaviour.mode == "refuse":
                self._close()
                timer = threading.Timer(behaviour.duration, self._reopen, (self._generation,))
                timer.daemon = True
                timer.start()
            else:
                self._open()

    def _close(self):
        if self._api is not None:
            self._api.shutdown()
            self._api.server_close()
            self._api = None

    def _open(self):
        if self._api is None:
            self._api = self._listen(self.host, self.port)

    def _reopen(self, generation):
        with self._lock:
            if generation == self._generation:
                self.switch.set(Behaviour())
                self._open()

    def stop(self):
        with self._lock:
            self._generation += 1
            self._close()
            if self._control is not None:
                self._control.shutdown()
                self._control.server_close()


class HungUp(Exception):
    """The client closed the connection."""


class Handler(http.server.BaseHTTPRequestHandler):
    """What both doubles share: JSON in and out, streaming, the control paths, and misbehaving.

    Subclasses have ``routes`` ({(method, path): function name}), ``error(status, text)`` giving an error body in their
    API's shape (without a text: what the real service would say), and ``reply(body, behaviour)`` which answers a model
    call.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 120
    double: Double
    control_only = False
    routes: dict = {}
    CONTROL = {
        ("GET", "/requests"): "list_requests",
        ("DELETE", "/requests"): "clear_requests",
        ("GET", "/behaviour"): "show_behaviour",
        ("POST", "/behaviour"): "set_behaviour",
    }

    def log_message(self, *_arguments):
        """Every model call is in /requests; nothing is logged."""

    def do_GET(self):
        self._dispatch()

    do_POST = do_DELETE = do_HEAD = do_GET

    def _dispatch(self):
        url = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(url.query))
        method = "GET" if self.command == "HEAD" else self.command
        control = self.CONTROL.get((method, url.path))
        function = control or (None if self.control_only else self.routes.get((method, url.path)))
        try:
            body = self._read_body()
            if not (control or self.control_only) and self.double.switch.current().mode == "refuse":
                self.close_connection = True  # a connection from before the socket was closed
            else:
                getattr(self, function or "no_such_path")(body)
        except ValueError as error:
            self.send_json(400, self.error(400, str(error)))
        except (HungUp, ConnectionError, TimeoutError):
            self.close_connection = True

    def _read_body(self):
        raw = self.read_raw()
        if not raw:
            return {}
        try:
            body = json.loads(raw)
        except ValueError:
            raise ValueError("the request body is not JSON") from None
        if not isinstance(body, dict):
            raise ValueError("the request body must be a JSON object")
        return body

    def read_raw(self):
        """The body of the request, as bytes."""
        length = int(self.headers.get("Content-Length") or 0)
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return self._read_chunks()
        if 0 <= length <= LARGEST_BODY:
            return self.rfile.read(length)
        self.close_connection = True
        raise ValueError("the request body is too large")

    def _read_chunks(self):
        raw = b""
        while size := int(self.rfile.readline(32).split(b";")[0], 16):
            raw += self.rfile.read(size)
            self.rfile.readline(8)
            if len(raw) > LARGEST_BODY:
                self.close_connection = True
                raise ValueError("the request body is too large")
        while self.rfile.readline(8192).strip():
            pass
        return raw

    # -- answering

    def error(self, status, text=None):
        raise NotImplementedError

    def no_such_path(self, _body):
        self.send_json(404, self.error(404, f"this double has no {self.command} {self.path}"))

    def send_json(self, status, body, headers=()):
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def start_stream(self, content_type, behaviour=Behaviour()):
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if behaviour.mode == "slow_first_token":
            self.hold(behaviour.delay)

    def send_piece(self, text):
        raw = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(raw), raw))

    def end_stream(self):
        self.wfile.write(b"0\r\n\r\n")

    def hold(self, seconds, unless=lambda: False):
        """Wait; end early when ``unless()`` becomes true.

        :raises HungUp: as soon as the client closes the connection
        """
        deadline = time.monotonic() + min(seconds, LONGEST_HOLD)
        while (left := deadline - time.monotonic()) > 0 and not unless():
            readable = select.select([self.connection], [], [], min(left, 0.1))[0]
            if readable:
                if not self.connection.recv(1, socket.MSG_PEEK):
                    raise HungUp
                time.sleep(min(left, 0.1))  # a pipelined request is waiting, the client is still there

    # -- a model call

    def model_call(self, body):
        """Record the call, then answer it as the behaviour says."""
        messages = body.get("messages")
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise ValueError("messages must be a list of objects")
        self.record = self.double.recorder.add(body, self.headers)
        try:
            self._answer_as_told(body, (self.record["user_messages"] or [""])[-1])
        finally:
            self.ended("client hung up")

    def ended(self, outcome):
        """Write down how the model call ends; only the first verdict counts.

        It is said before the last bytes are sent, so that whoever has the answer finds it recorded.
        """
        self.double.recorder.finish(self.record, outcome)

    def _answer_as_told(self, body, newest):
        behaviour = self.double.switch.take(newest)
        if behaviour.mode in ERROR_MODES:
            status = ERROR_MODES[behaviour.mode]
            self.ended(f"error {status}")
            self.send_json(status, self.error(status), [("Retry-After", "1")] if status == 429 else [])
        elif behaviour.mode == "hang":
            changes = self.double.switch.changes
            seconds = LONGEST_HOLD if behaviour.seconds is None else behaviour.seconds
            self.hold(seconds, unless=lambda: self.double.switch.changes != changes)
            self.ended("hung")
            self.close_connection = True
        else:
            self.reply(body, behaviour)

    def paced(self, text, behaviour):
        """The pieces of a streamed answer, in mode ``slow`` each after its share of the delay."""
        parts = pieces(text)
        for part in parts:
            if behaviour.mode == "slow":
                self.hold(behaviour.delay / len(parts))
            yield part

    def tool_calls(self, body, behaviour):
        """The tool calls of the mode ``tool`` as (name, arguments), or [] when it is time to answer in words."""
        if behaviour.mode != "tool" or tool_rounds(body["messages"]) >= behaviour.rounds:
            return []
        offered = [tool.get("function", {}).get("name") for tool in body.get("tools") or []]
        name = behaviour.tool or (offered[0] if offered else "")
        return [(name, behaviour.arguments)] * behaviour.calls if name else []

    # -- control paths

    def list_requests(self, _body):
        try:
            since = int(self.query.get("since", 0))
        except ValueError:
            raise ValueError("since must be a whole number") from None
        self.send_json(200, self.double.recorder.list(since, self.query.get("match", "")))

    def clear_requests(self, _body):
        self.double.recorder.clear()
        self.send_json(200, {"cleared": True})

    def show_behaviour(self, _body):
        self.send_json(200, dataclasses.asdict(self.double.switch.current()))

    def set_behaviour(self, body):
        behaviour = parse_behaviour(body)
        self.double.behave(behaviour)
        self.send_json(200, dataclasses.asdict(behaviour))


# ---- Ollama --------------------------------------------------------------------------------------------------------


class Models:
    """Names of models and when each appeared; kept in ``directory`` when one is given."""

    def __init__(self, directory=None):
        self._lock = threading.Lock()
        self._path = pathlib.Path(directory, "double.json") if directory else None
        self._models = json.loads(self._path.read_text()) if self._path and self._path.exists() else {}

    @staticmethod
    def full(name):
        return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"

    def add(self, name, source):
        with self._lock:
            self._models[self.full(name)] = {
                "source": source,
                "modified_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            if self._path:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                temporary = self._path.with_suffix(".tmp")
                temporary.write_text(json.dumps(self._models))
                temporary.replace(self._path)

    def __contains__(self, name):
        with self._lock:
            return self.full(name) in self._models

    def list(self):
        """The models in the shape of GET /api/tags."""
        details = {
            "format": "gguf",
            "family": "double",
            "families": ["double"],
            "parameter_size": "0",
            "quantization_level": "none",
        }
        with self._lock:
            return [
                {
                    "name": name,
                    "model": name,
                    "modified_at": model["modified_at"],
                    "size": 1,
                    "digest": hashlib.sha256(f"{name}\n{model['source']}".encode()).hexdigest(),
                    "details": details,
                }
                for name, model in sorted(self._models.items())
            ]


class OllamaHandler(Handler):
    """Ollama's HTTP API, as far as the role and the gateway use it."""

    models: Models
    routes = {
        ("GET", "/"): "root",
        ("GET", "/api/version"): "version",
        ("GET", "/api/tags"): "tags",
        ("POST", "/api/show"): "show",
        ("POST", "/api/chat"): "chat",
        ("POST", "/api/pull"): "pull",
        ("POST", "/api/create"): "create",
    }

    def error(self, status, text=None):
        return {"error": text or http.HTTPStatus(status).phrase}

    def root(self, _body):
        self.send_json(200, "Ollama is running (a stand-in)")

    def version(self, _body):
        self.send_json(200, {"version": VERSION})

    def tags(self, _body):
        self.send_json(200, {"models": self.models.list()})

    def _known(self, body):
        """The model that a request names, or None after a 404 has been sent."""
        name = str(body.get("model") or body.get("name") or "")
        if name in self.models:
            return name
        self.send_json(404, self.error(404, f"model '{name}' not found"))
        return None

    def show(self, body):
        if self._known(body):
            self.send_json(
                200,
                {
                    "modelfile": "# a stand-in has no weights",
                    "parameters": "num_ctx 32768",
                    "template": "{{ .Prompt }}",
                    "details": {"format": "gguf", "family": "double"},
                    "model_info": {"general.architecture": "double", "double.context_length": 32768},
                    "capabilities": ["completion", "tools"],
                },
            )

    def chat(self, body):
        if self._known(body):
            self.model_call(body)

    def reply(self, body, behaviour):
        stream = body.get("stream", True) is not False
        calls = self.tool_calls(body, behaviour)
        text = "" if calls else answer(body["messages"], "ollama")

        def chunk(content, **more):
            created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            return {
                "model": body.get("model"),
                "created_at": created,
                "message": {"role": "assistant", "content": content},
                **more,
            }

        last = {
            "done": True,
            "done_reason": "stop",
            "total_duration": 1000000,
            "load_duration": 0,
            "prompt_eval_count": prompt_tokens(body["messages"]),
            "prompt_eval_duration": 500000,
            "eval_count": tokens(text),
            "eval_duration": 500000,
        }
        wanted = [{"function": {"name": name, "arguments": arguments}} for name, arguments in calls]
        if not stream:
            self.hold(behaviour.delay)
            whole = chunk(text, **last)
            if wanted:
                whole["message"]["tool_calls"] = wanted
            self.ended("answered")
            self.send_json(200, whole)
            return
        self.start_stream("application/x-ndjson", behaviour)
        if wanted:
            first = chunk("", done=False)
            first["message"]["tool_calls"] = wanted
            self.send_piece(json.dumps(first) + "\n")
        for part in self.paced(text, behaviour):
            self.send_piece(json.dumps(chunk(part, done=False)) + "\n")
        self.ended("answered")
        self.send_piece(json.dumps(chunk("", **last)) + "\n")
        self.end_stream()

    def pull(self, body):
        name = str(body.get("model") or body.get("name") or "")
        if not name:
            raise ValueError("model is required")
        if "missing" in name:
            self._progress(
                body, [{"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"}]
            )
            return
        digest = "sha256:" + hashlib.sha256(name.encode()).hexdigest()
        layer = {"status": f"pulling {digest[7:19]}", "digest": digest, "total": 100}
        steps = [{"status": "pulling manifest"}, *({**layer, "completed": done} for done in (0, 50, 100))]
        self.models.add(name, f"pull {name}")
        self._progress(
            body, [*steps, {"status": "verifying sha256 digest"}, {"status": "writing manifest"}, {"status": "success"}]
        )

    def create(self, body):
        name = str(body.get("model") or body.get("name") or "")
        if not name:
            raise ValueError("model is required")
        self.models.add(name, json.dumps(body, sort_keys=True))
        self._progress(body, [{"status": "creating new layer"}, {"status": "writing manifest"}, {"status": "success"}])

    def _progress(self, body, steps):
        """What a long operation reports: every step as one line, or only the last one where no stream is wanted."""
        if body.get("stream", True) is False:
            self.send_json(500 if "error" in steps[-1] else 200, steps[-1])
            return
        self.start_stream("application/x-ndjson")
        for step in steps:
            self.send_piece(json.dumps(step) + "\n")
        self.end_stream()


def address(text):
    """Host and port from OLLAMA_HOST: ``host``, ``host:port`` or ``http://host:port``."""
    url = urllib.parse.urlsplit(text if "://" in text else f"//{text}")
    return url.hostname or "127.0.0.1", url.port or 11434


def ask(path, body=None):
    """Ask the server at OLLAMA_HOST as the command line does; returns the decoded last line.

    :raises SystemExit: with the error, as Ollama's command line ends
    """
    host, port = address(os.environ.get("OLLAMA_HOST", ""))
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://{host}:{port}{path}", data=data, headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            reply = json.loads(response.read().decode().splitlines()[-1])
    except urllib.error.HTTPError as error:
        raise SystemExit(f"Error: {json.load(error).get('error')}") from None
    except OSError as error:
        raise SystemExit(f"Error: could not connect to ollama server at {host}:{port}: {error}") from None
    if "error" in reply:
        raise SystemExit(f"Error: {reply['error']}")
    return reply


def command_line():
    parser = argparse.ArgumentParser(
        prog="ollama", description="A stand-in for ollama, for tests. There is no language model in it."
    )
    parser.add_argument("-v", "--version", action="version", version=f"ollama version is {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve")
    commands.add_parser("list", aliases=["ls"])
    for name in ("pull", "show"):
        commands.add_parser(name).add_argument("name")
    create = commands.add_parser("create")
    create.add_argument("name")
    create.add_argument("-f", "--file", required=True)
    return parser


def main(arguments=None):
    options = command_line().parse_args(arguments)
    if options.command == "serve":
        host, port = address(os.environ.get("OLLAMA_HOST", ""))
        double = Double(OllamaHandler, host, port, models=Models(os.environ.get("OLLAMA_MODELS")))
        print(f"ollama stand-in listens on {double.host}:{double.port}", flush=True)
        threading.Event().wait()
    elif options.command in ("list", "ls"):
        for model in ask("/api/tags")["models"]:
            print(f"{model['name']}\t{model['digest'][:12]}\t{model['modified_at']}")
    elif options.command == "pull":
        print(ask("/api/pull", {"model": options.name})["status"])
    elif options.command == "create":
        modelfile = pathlib.Path(options.file)
        if not modelfile.is_file():
            raise SystemExit(f"Error: no Modelfile at {modelfile}")
        origin = re.search(r"^FROM\s+(\S+)", modelfile.read_text(), re.MULTILINE | re.IGNORECASE)
        if not origin or (origin[1].startswith("/") and not os.path.isfile(origin[1])):
            raise SystemExit(f"Error: {modelfile} has no FROM line that names a model or an existing file")
        source = hashlib.sha256(modelfile.read_bytes()).hexdigest()
        print(ask("/api/create", {"model": options.name, "from": source})["status"])
    else:
        print(json.dumps(ask("/api/show", {"model": options.name}), indent=2))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
