"""The doubles are scripts, not a package: make them importable, and talk to them over real sockets."""

import contextlib
import json
import pathlib
import sys
import time
import types
import urllib.error
import urllib.request

import pytest

DOUBLES = pathlib.Path(__file__).resolve().parents[2] / "doubles"
sys.path.insert(0, str(DOUBLES))


def _call(url, body=None, method=None, headers=(), timeout=10):
    """One request; returns status, headers and body (decoded when it is JSON)."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        url, data=data, method=method, headers={"Content-Type": "application/json", **dict(headers)}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            status, raw, received = response.status, response.read(), response.headers
    except urllib.error.HTTPError as error:
        status, raw, received = error.code, error.read(), error.headers
    with contextlib.suppress(ValueError):
        raw = json.loads(raw)
    return types.SimpleNamespace(status=status, body=raw, headers=received)


@pytest.fixture
def call():
    return _call


@pytest.fixture
def until():
    def poll(condition, seconds=10):
        """Poll until ``condition()`` is true; returns its value, or fails at the deadline."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, "the condition did not come true in time"
            time.sleep(0.02)  # between two looks
        return value

    return poll


@pytest.fixture
def llm():
    """A running LLM double on free ports: its ``url`` and ``control`` url."""
    import llm_double

    double = llm_double.Double(llm_double.OpenAIHandler, control_port=0)
    yield types.SimpleNamespace(
        double=double,
        port=double.port,
        url=f"http://127.0.0.1:{double.port}",
        control=f"http://127.0.0.1:{double.control_port}",
    )
    double.stop()


@pytest.fixture
def ollama():
    """A running Ollama double on a free port that knows the model ``tiny``."""
    import ollama_double

    models = ollama_double.Models()
    models.add("tiny", "test")
    double = ollama_double.Double(ollama_double.OllamaHandler, models=models)
    yield types.SimpleNamespace(double=double, port=double.port, url=f"http://127.0.0.1:{double.port}")
    double.stop()


@pytest.fixture
def telegram():
    """Starts Telegram doubles with settings that suit tests; one has a ``url`` of its bot's API and a ``control`` url of its bot."""
    import telegram_double

    started = []

    def start(token="101:secret-1", **settings):
        usual = {"retry_base": 0.05, "retry_longest": 0.4, "webhook_timeout": 5, "conflict_pause": 0}
        double = telegram_double.TelegramDouble(tokens=[token], settings=telegram_double.Settings(**{**usual, **settings}))
        started.append(double)
        root = f"http://127.0.0.1:{double.port}"
        return types.SimpleNamespace(
            double=double,
            bot=double.with_token(token),
            root=root,
            url=f"{root}/bot{token}",
            control=f"{root}/control/{token.split(':')[0]}",
        )

    yield start
    for double in started:
        double.stop()
