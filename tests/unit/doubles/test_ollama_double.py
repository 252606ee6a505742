"""The Ollama double over real sockets, and as the single file that is installed in place of the ollama binary."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import ollama_double

from tests.ports import free_port


def lines(raw):
    return [json.loads(line) for line in raw.decode().splitlines()]


MESSAGES = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "[Fri 2026-11-20 16:20 UTC] one"},
    {"role": "user", "content": "two"},
]
TEXT = 'ollama seen 2 user messages: "one" | "two"'


def test_version_tags_and_show(ollama, call):
    assert call(f"{ollama.url}/api/version").body["version"]
    assert [model["name"] for model in call(f"{ollama.url}/api/tags").body["models"]] == ["tiny:latest"]
    assert call(f"{ollama.url}/api/show", {"model": "tiny"}).body["model_info"]["double.context_length"] == 32768
    assert call(f"{ollama.url}/api/show", {"model": "absent"}).status == 404


def test_chat_whole(ollama, call):
    reply = call(f"{ollama.url}/api/chat", {"model": "tiny", "messages": MESSAGES, "stream": False}).body
    assert reply["message"] == {"role": "assistant", "content": TEXT}
    assert reply["done"] is True and reply["prompt_eval_count"] > 0 and reply["eval_count"] > 0


def test_chat_streams_by_default(ollama, call):
    reply = call(f"{ollama.url}/api/chat", {"model": "tiny:latest", "messages": MESSAGES})
    assert reply.headers["Content-Type"] == "application/x-ndjson"
    chunks = lines(reply.body)
    assert "".join(chunk["message"]["content"] for chunk in chunks) == TEXT
    assert [chunk["done"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True] and len(chunks) > 3


def test_chat_with_an_unknown_model_is_refused_and_not_recorded(ollama, call):
    reply = call(f"{ollama.url}/api/chat", {"model": "absent", "messages": MESSAGES})
    assert reply.status == 404 and "absent" in reply.body["error"]
    assert call(f"{ollama.url}/requests").body == []


def test_requests_are_recorded_and_cleared(ollama, call):
    call(f"{ollama.url}/api/chat", {"model": "tiny", "messages": MESSAGES, "stream": False})
    assert [record["user_messages"] for record in call(f"{ollama.url}/requests").body] == [["one", "two"]]
    call(f"{ollama.url}/requests", method="DELETE")
    assert call(f"{ollama.url}/requests").body == []


def test_it_misbehaves_like_the_other_double(ollama, call):
    call(f"{ollama.url}/behaviour", {"mode": "500", "times": 1})
    statuses = [call(f"{ollama.url}/api/chat", {"model": "tiny", "messages": MESSAGES}).status for _attempt in range(2)]
    assert statuses == [500, 200]


def test_tool_calls(ollama, call):
    call(f"{ollama.url}/behaviour", {"mode": "tool", "tool": "ls", "arguments": {"path": "."}})
    chunks = lines(call(f"{ollama.url}/api/chat", {"model": "tiny", "messages": MESSAGES}).body)
    assert chunks[0]["message"]["tool_calls"] == [{"function": {"name": "ls", "arguments": {"path": "."}}}]


def test_pull_and_create(ollama, call):
    steps = lines(call(f"{ollama.url}/api/pull", {"model": "new:1b"}).body)
    assert steps[-1] == {"status": "success"} and any(step.get("total") for step in steps)
    assert call(f"{ollama.url}/api/create", {"model": "made", "stream": False}).body == {"status": "success"}
    assert [model["name"] for model in call(f"{ollama.url}/api/tags").body["models"]] == [
        "made:latest",
        "new:1b",
        "tiny:latest",
    ]
    assert "error" in lines(call(f"{ollama.url}/api/pull", {"model": "missing"}).body)[-1]
    assert call(f"{ollama.url}/api/pull", {"model": "missing", "stream": False}).status == 500


@pytest.fixture
def program(tmp_path):
    """The file alone, installed as a binary, and a function that runs it against a server of its own."""
    binary = tmp_path / "bin" / "ollama"
    binary.parent.mkdir()
    shutil.copy(ollama_double.__file__, binary)
    port = free_port()
    environment = os.environ | {
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(tmp_path / "models"),
        "PYTHONDONTWRITEBYTECODE": "1",
        # The file asks for "python", which need not be on the path of whoever runs the tests.
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    }

    def run(*arguments):
        return subprocess.run(
            [binary, *arguments], env=environment, capture_output=True, text=True, timeout=20, check=False
        )

    run.url = f"http://127.0.0.1:{port}"
    run.serve = lambda: subprocess.Popen([binary, "serve"], env=environment, stdout=subprocess.PIPE, text=True)
    run.directory = tmp_path
    return run


def test_the_command_line(program, call):
    server = program.serve()
    try:
        assert "stand-in" in server.stdout.readline()
        assert program("--version").stdout.startswith("ollama version is ")
        assert program("pull", "tiny:1b").returncode == 0
        modelfile = program.directory / "Modelfile"
        modelfile.write_text("FROM tiny:1b\n")
        assert program("create", "mine", "-f", str(modelfile)).returncode == 0
        assert [line.split("\t")[0] for line in program("list").stdout.splitlines()] == ["mine:latest", "tiny:1b"]
        assert "model_info" in program("show", "mine").stdout
        for wrong in (("pull", "missing"), ("show", "absent"), ("create", "x", "-f", str(modelfile) + ".none")):
            result = program(*wrong)
            assert result.returncode == 1 and result.stderr.startswith("Error: ")
        modelfile.write_text("FROM /no/such/weights.gguf\n")
        assert program("create", "mine", "-f", str(modelfile)).returncode == 1
    finally:
        server.terminate()
        server.communicate(timeout=5)


def test_models_survive_a_restart(program, call):
    for expected in ([], ["tiny:latest"]):
        server = program.serve()
        try:
            server.stdout.readline()
            assert [model["name"] for model in call(f"{program.url}/api/tags").body["models"]] == expected
            program("pull", "tiny")
        finally:
            server.terminate()
            server.communicate(timeout=5)


def test_without_a_server_the_command_line_says_so(program):
    result = program("list")
    assert result.returncode == 1 and "could not connect" in result.stderr
