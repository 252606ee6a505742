#!/usr/bin/python
# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ollama_model
short_description: Have a model in Ollama
version_added: "0.1.0"
author:
  - The openclaw.ha contributors (@openclaw-ha)
description:
  - Pulls a model, or creates it from a file on the host, unless the Ollama server has it already.
  - A model that was created from a file is created again when the file's content has changed, or when the model has
    changed since. What it was created from is noted beside the file, under the same name with C(.applied) appended.
  - While a model is pulled, the progress is logged on the host every 10 percent.
options:
  name:
    description: Name of the model; without a tag it means C(latest).
    type: str
    required: true
  url:
    description: Where the Ollama server answers.
    type: str
    default: http://127.0.0.1:11434
  file:
    description:
      - Modelfile or GGUF file on the host from which the model is created. Without it the model is pulled.
      - Files that a Modelfile names must be on the host, with absolute paths.
    type: path
  executable:
    description: The C(ollama) program, which is needed with O(file).
    type: path
    default: /usr/local/bin/ollama
  timeout:
    description: Seconds that pulling or creating the model may take.
    type: int
    default: 3600
  stall_timeout:
    description: Seconds without any progress after which pulling is given up.
    type: int
    default: 120
  wait:
    description:
      - Seconds to wait for a server that does not answer yet.
      - In check mode a server that does not answer is taken as not installed yet.
    type: int
    default: 60
attributes:
  check_mode:
    description: Says what would be done and does nothing.
    support: full
  diff_mode:
    description: Shows the model's digest before and after.
    support: full
"""

EXAMPLES = r"""
- name: Pull a model
  openclaw.ha.ollama_model:
    name: llama3.2:1b
    url: http://192.0.2.11:11434

- name: Create a model from weights that are on the host
  openclaw.ha.ollama_model:
    name: ours
    file: /opt/models/ours.gguf
"""

RETURN = r"""
model:
  description: Name, digest and size in bytes of the model; null when there is none in check mode.
  type: dict
  returned: always
  sample: {"name": "llama3.2:1b", "digest": "baf6a787fdff...", "size": 1321098329}
"""

import hashlib
import json
import os
import tempfile
import time
import urllib.error

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url


class OllamaError(Exception):
    """Something did not work; the text is a whole sentence for the operator."""


def full_name(name):
    """A model's name as the server lists it."""
    return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


def find(tags, name):
    """The model of that name in the answer of GET /api/tags, or None."""
    for model in tags.get("models") or []:
        if model.get("name") == full_name(name):
            return {key: model.get(key) for key in ("name", "digest", "size")}
    return None


def milestones(step=10):
    """A function that is told each progress report; it returns a text every ``step`` percent of a layer."""
    seen = {}

    def report(line):
        total, completed, digest = line.get("total"), line.get("completed", 0), line.get("digest")
        if not total or not digest:
            return None
        percent = completed * 100 // total // step * step
        if percent <= seen.get(digest, -1):
            return None
        seen[digest] = percent
        return f"{digest[:19]}: {percent} % of {total / 1e6:.0f} MB"

    return report


def modelfile(path):
    """A Modelfile for weights (GGUF), or None when the file is a Modelfile itself."""
    with open(path, "rb") as file:
        return f"FROM {path}\n" if file.read(4) == b"GGUF" else None


def checksum(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Server:
    """An Ollama server over HTTP."""

    def __init__(self, url):
        self.url = url.rstrip("/")

    def tags(self):
        try:
            with open_url(f"{self.url}/api/tags", timeout=10, use_proxy=False) as response:
                return json.load(response)
        except (OSError, ValueError) as error:
            raise OllamaError(f"Ollama does not answer at {self.url} ({error}); see `journalctl -u ollama`.") from error

    def tags_within(self, seconds):
        """Ask until the server answers, for at most ``seconds``."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self.tags()
            except OllamaError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.2)  # between two looks, until the deadline

    def pull(self, name, timeout, stall_timeout, log):
        """Pull a model; ``log`` is called with a text now and then."""
        report = milestones()
        deadline = time.monotonic() + timeout
        body = json.dumps({"model": name, "stream": True})
        status = None
        try:
            response = open_url(
                f"{self.url}/api/pull",
                method="POST",
                data=body,
                headers={"Content-Type": "application/json"},
                timeout=stall_timeout,
                use_proxy=False,
            )
            with response:
                for raw in response:
                    line = json.loads(raw)
                    if "error" in line:
                        raise OllamaError(f"Ollama cannot pull {name}: {line['error']}.")
                    status = line.get("status")
                    if text := report(line):
                        log(f"pulling {name}: {text}")
                    if time.monotonic() > deadline:
                        raise OllamaError(
                            f"Pulling {name} took longer than {timeout} s; what is there is kept; run it again."
                        )
        except urllib.error.HTTPError as error:
            raise OllamaError(
                f"Ollama cannot pull {name}: {error} {error.read(500).decode(errors='replace').strip()}"
            ) from error
        except TimeoutError as error:
            raise OllamaError(
                f"Pulling {name} made no progress for {stall_timeout} s; can the host reach the model registry?"
            ) from error
        except (OSError, ValueError) as error:
            raise OllamaError(f"Pulling {name} through {self.url} failed: {error}.") from error
        if status != "success":
            raise OllamaError(f"Pulling {name} ended without success; its last status was {status!r}.")


def create(run, executable, url, name, path, timeout):
    """Create a model with the command line, which knows how to read a Modelfile and to upload what it names.

    ``run`` is :meth:`AnsibleModule.run_command`.
    """
    environment = {"HOME": os.environ.get("HOME", tempfile.gettempdir()), "OLLAMA_HOST": url}
    with tempfile.NamedTemporaryFile("w", suffix=".Modelfile") as temporary:
        text = modelfile(path)
        if text:
            temporary.write(text)
            temporary.flush()
        command = ["timeout", str(timeout), executable, "create", name, "-f", temporary.name if text else path]
        code, output, errors = run(command, environ_update=environment)
    if code == 124:
        raise OllamaError(f"Creating {name} took longer than {timeout} s.")
    if code in (126, 127):
        raise OllamaError(f"{executable} cannot be run: {errors.strip()}.")
    if code != 0:
        last = (errors.strip() or output.strip() or f"exit status {code}").splitlines()[-1]
        raise OllamaError(f"Ollama cannot create {name} from {path}: {last}")


def applied(path, model):
    """What is noted beside a file: its content and the model that came of it."""
    return f"{checksum(path)} {model['digest']}\n"


def read_text(path):
    """A small file's text, or "" when it is not there."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def ensure(parameters, check_mode, log, run):
    """Have the model; returns (changed, model before, model after)."""
    server, name, path = Server(parameters["url"]), parameters["name"], parameters["file"]
    try:
        before = find(server.tags_within(0 if check_mode else parameters["wait"]), name)
    except OllamaError:
        if not check_mode:
            raise
        before = None
    if path and not os.path.isfile(path) and not check_mode:
        raise OllamaError(f"There is no file {path} to create {name} from.")
    if before and (not path or (os.path.isfile(path) and read_text(f"{path}.applied") == applied(path, before))):
        return False, before, before
    if check_mode:
        return True, before, None
    if path:
        create(run, parameters["executable"], server.url, name, path, parameters["timeout"])
    else:
        server.pull(name, parameters["timeout"], parameters["stall_timeout"], log)
    after = find(server.tags(), name)
    if after is None:
        raise OllamaError(f"Ollama reported success, but does not list {full_name(name)}.")
    if path:
        with open(f"{path}.applied", "w", encoding="utf-8") as file:
            file.write(applied(path, after))
    return True, before, after


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "url": {"type": "str", "default": "http://127.0.0.1:11434"},
            "file": {"type": "path"},
            "executable": {"type": "path", "default": "/usr/local/bin/ollama"},
            "timeout": {"type": "int", "default": 3600},
            "stall_timeout": {"type": "int", "default": 120},
            "wait": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    try:
        changed, before, after = ensure(module.params, module.check_mode, module.log, module.run_command)
    except OllamaError as error:
        module.fail_json(msg=str(error))
    digests = [f"{model['name']} {model['digest']}\n" if model else "" for model in (before, after)]
    if module.check_mode and changed:
        digests[1] = f"{full_name(module.params['name'])} (to be {'created' if module.params['file'] else 'pulled'})\n"
    module.exit_json(changed=changed, model=after, diff={"before": digests[0], "after": digests[1]})


if __name__ == "__main__":
    main()
