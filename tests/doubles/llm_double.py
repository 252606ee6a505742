# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for a cloud language model with an OpenAI-compatible API. There is no language model in it.

It takes the place of the first provider in the lab, so that tests can see which messages a gateway really sent, and can
make the provider fail in each way a real one does:

    POST /v1/chat/completions (whole or streamed, with a usage chunk when asked for), GET /v1/models

An answer says which user messages it was shown: ``seen 2 user messages: "hello" | "and now?"``.

For tests: GET /requests, DELETE /requests, GET /behaviour, POST /behaviour (see README.md beside this file), on the
API's port and on a second one (by default the next) that still answers while the mode ``refuse`` keeps the API's socket
closed.

Standard library only; needs ``ollama_double.py`` beside it, which holds the parts that both share.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
import uuid

from ollama_double import Double, Handler, answer, prompt_tokens, tokens

CODES = {
    400: ("invalid_request_error", "context_length_exceeded", "This model's maximum context length is exceeded."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached."),
    500: ("server_error", None, "The server had an error while processing your request."),
    503: ("server_error", None, "The engine is currently overloaded."),
}


class OpenAIHandler(Handler):
    """The parts of OpenAI's HTTP API that the gateway uses."""

    routes = {("GET", "/v1/models"): "models", ("POST", "/v1/chat/completions"): "model_call"}

    def error(self, status, text=None):
        kind, code, message = ("invalid_request_error", None, text) if text else CODES[status]
        return {"error": {"message": message, "type": kind, "param": None, "code": code}}

    def models(self, _body):
        self.send_json(
            200, {"object": "list", "data": [{"id": "double", "object": "model", "created": 0, "owned_by": "tests"}]}
        )

    def reply(self, body, behaviour):
        wanted = [
            {
                "id": f"call_{uuid.uuid4().hex[:12]}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for name, arguments in self.tool_calls(body, behaviour)
        ]
        text = "" if wanted else answer(body["messages"])
        reason = "tool_calls" if wanted else "stop"
        prompt, completion = prompt_tokens(body["messages"]), tokens(text)
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        common = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.get("model")}
        if not body.get("stream"):
            self.hold(behaviour.delay)
            message = {"role": "assistant", "content": text or None} | ({"tool_calls": wanted} if wanted else {})
            choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
            self.ended("answered")
            self.send_json(200, {**common, "object": "chat.completion", "choices": [choice], "usage": usage})
            return

        def send(delta, finish_reason=None):
            choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
            self._event({**common, "object": "chat.completion.chunk", "choices": choices})

        self.start_stream("text/event-stream", behaviour)
        send({"role": "assistant", "content": ""})
        for index, call in enumerate(wanted):
            send({"tool_calls": [{"index": index, **call}]})
        for part in self.paced(text, behaviour):
            send({"content": part})
        self.ended("answered")
        send({}, reason)
        if (body.get("stream_options") or {}).get("include_usage"):
            self._event({**common, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        self.send_piece("data: [DONE]\n\n")
        self.end_stream()

    def _event(self, data):
        self.send_piece(f"data: {json.dumps(data)}\n\n")


def main(arguments=None):
    parser = argparse.ArgumentParser(description="A stand-in for an OpenAI-compatible language model, for tests.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=9100, help="port of the API and of the control paths")
    parser.add_argument(
        "--control-port", type=int, help="second port of the control paths; default: the API's port + 1"
    )
    options = parser.parse_args(arguments)
    control_port = options.port + 1 if options.control_port is None and options.port else options.control_port or 0
    double = Double(OpenAIHandler, options.host, options.port, control_port)
    print(
        f"LLM stand-in listens on {double.host}:{double.port}, control paths also on port {double.control_port}",
        flush=True,
    )
    threading.Event().wait()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
