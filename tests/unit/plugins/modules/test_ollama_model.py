"""The module ollama_model against the Ollama double."""

from __future__ import annotations

import json
import os
import subprocess
import pathlib
import socket
import sys
import threading

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "doubles"))

import ollama_double

from ansible_collections.openclaw.ha.plugins.modules import ollama_model
from tests.ports import free_port


def run_command(command, environ_update):
    """What a module's own run_command does, without a module."""
    environment = {**os.environ, **environ_update}
    done = subprocess.run(command, check=False, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def double(tmp_path):
    running = ollama_double.Double(ollama_double.OllamaHandler, models=ollama_double.Models())
    yield running
    running.stop()


@pytest.fixture
def have(double, monkeypatch):
    # The double asks for "python", which need not be on the path of whoever runs the tests.
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")

    def run(name, check_mode=False, **more):
        parameters = {
            "name": name,
            "url": f"http://127.0.0.1:{double.port}",
            "file": None,
            "executable": ollama_double.__file__,
            "timeout": 30,
            "stall_timeout": 5,
            "wait": 5,
            **more,
        }
        run.log = []
        return ollama_model.ensure(parameters, check_mode, run.log.append, run_command)

    return run


def names(double):
    return [model["name"] for model in double._handler.models.list()]


def test_a_model_is_pulled_once(double, have):
    changed, before, after = have("tiny:1b")
    assert (changed, before, after["name"]) == (True, None, "tiny:1b") and len(after["digest"]) == 64
    assert have("tiny:1b") == (False, after, after)
    assert names(double) == ["tiny:1b"]


def test_a_name_without_a_tag_means_latest(have):
    assert have("registry.example:5000/team/tiny")[2]["name"] == "registry.example:5000/team/tiny:latest"
    assert have("tiny")[0] and not have("tiny:latest")[0]


def test_progress_is_logged(have):
    have("tiny")
    assert [line.rsplit(": ", 1)[1] for line in have.log] == ["0 % of 0 MB", "50 % of 0 MB", "100 % of 0 MB"]


def test_check_mode_says_so_and_does_nothing(double, have):
    assert have("tiny", check_mode=True) == (True, None, None)
    assert names(double) == []
    have("tiny")
    assert have("tiny", check_mode=True)[0] is False


def test_check_mode_on_a_host_without_anything(have):
    assert have("tiny", check_mode=True, url="http://127.0.0.1:9")[0] is True
    assert have("tiny", check_mode=True, url="http://127.0.0.1:9", file="/no/such/file")[0] is True


def test_a_model_that_cannot_be_pulled(have):
    with pytest.raises(ollama_model.OllamaError, match="cannot pull missing: pull model manifest: file does not exist"):
        have("missing")


def test_a_name_that_the_server_refuses(have):
    with pytest.raises(ollama_model.OllamaError, match="400.*model is required"):
        have("")


def test_no_server(have):
    with pytest.raises(ollama_model.OllamaError, match="does not answer at http://127.0.0.1:9 .*journalctl -u ollama"):
        have("tiny", url="http://127.0.0.1:9", wait=0)


def test_it_waits_for_a_server_that_is_starting(have):
    port = free_port()
    late = []
    timer = threading.Timer(
        0.5,
        lambda: late.append(
            ollama_double.Double(ollama_double.OllamaHandler, port=port, models=ollama_double.Models())
        ),
    )
    timer.start()
    try:
        assert have("tiny", url=f"http://127.0.0.1:{port}", wait=20)[0] is True
    finally:
        timer.join()
        late[0].stop()


def serve_once(*chunks):
    """A server that answers GET with no models, and POST with these chunks and then silence; returns its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run():
        for body in (b'{"models": []}', None):
            connection, _peer = listener.accept()
            connection.recv(65536)
            if body is not None:
                connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + body)
                connection.close()
            else:
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + b"".join(chunks))
                held.append(connection)

    held = []
    threading.Thread(target=run, daemon=True).start()
    return listener, held


def test_a_stalled_pull_is_given_up(have):
    listener, held = serve_once(b'{"status": "pulling manifest"}\n')
    with listener, pytest.raises(ollama_model.OllamaError, match="no progress for 1 s"):
        have("tiny", url=f"http://127.0.0.1:{listener.getsockname()[1]}", stall_timeout=1)
    held[0].close()


def test_a_pull_that_takes_too_long_is_given_up(have):
    listener, held = serve_once(b'{"status": "pulling manifest"}\n')
    with listener, pytest.raises(ollama_model.OllamaError, match="took longer than 0 s"):
        have("tiny", url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=0)
    for connection in held:
        connection.close()


def test_a_modelfile_is_created_again_when_it_changes(double, have, tmp_path):
    source = tmp_path / "ours"
    source.write_text("FROM tiny\n")
    changed, before, first = have("ours", file=str(source))
    assert changed and before is None and first["name"] == "ours:latest"
    assert have("ours", file=str(source))[0] is False
    source.write_text("FROM tiny\nPARAMETER temperature 0\n")
    assert have("ours", file=str(source), check_mode=True)[0] is True
    changed, before, second = have("ours", file=str(source))
    assert changed and before == first and second["digest"] != first["digest"]
    assert have("ours", file=str(source))[0] is False


def test_a_model_that_somebody_replaced_is_created_again(double, have, tmp_path):
    source = tmp_path / "ours"
    source.write_text("FROM tiny\n")
    have("ours", file=str(source))
    double._handler.models.add("ours", "by hand")
    assert have("ours", file=str(source))[0] is True


def test_weights_get_a_modelfile(double, have, tmp_path):
    weights = tmp_path / "ours.gguf"
    weights.write_bytes(b"GGUF" + bytes(100))
    assert have("ours", file=str(weights))[0] is True
    assert names(double) == ["ours:latest"]
    assert have("ours", file=str(weights))[0] is False


@pytest.mark.parametrize(
    "content, executable, message",
    [
        ("no origin", None, "cannot create ours from .*has no FROM line"),
        (None, None, "no file"),
        ("FROM tiny", "/no/such/ollama", "cannot be run: .*No such file"),
    ],
)
def test_what_cannot_be_created(have, tmp_path, content, executable, message):
    source = tmp_path / "ours"
    if content:
        source.write_text(content)
    more = {"executable": executable} if executable else {}
    with pytest.raises(ollama_model.OllamaError, match=message):
        have("ours", file=str(source), **more)


def run_module(capsys, arguments):
    """Run the module as Ansible does; returns its JSON."""
    from ansible.module_utils.testing import patch_module_args

    with patch_module_args(arguments), pytest.raises(SystemExit):
        ollama_model.main()
    return json.loads(capsys.readouterr().out)


def test_the_module_shows_a_diff_and_fails_with_a_sentence(double, capsys):
    url = f"http://127.0.0.1:{double.port}"
    planned = run_module(capsys, {"name": "tiny", "url": url, "_ansible_check_mode": True})
    assert planned["changed"] and planned["diff"] == {"before": "", "after": "tiny:latest (to be pulled)\n"}
    done = run_module(capsys, {"name": "tiny", "url": url})
    assert done["changed"] and done["diff"]["after"] == f"tiny:latest {done['model']['digest']}\n"
    again = run_module(capsys, {"name": "tiny", "url": url})
    assert not again["changed"] and again["diff"]["before"] == again["diff"]["after"]
    failed = run_module(capsys, {"name": "missing", "url": url})
    assert failed["failed"] and failed["msg"].startswith("Ollama cannot pull missing")
