"""The real Ollama server, built from its Go module with inference on the CPU, and a tiny model for it to serve."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile

from . import tiny_model
from ..shell import LabError, run, say

HERE = pathlib.Path(__file__).parent
CACHE = HERE.parents[1] / ".lab" / "ollama"
VERSION = "0.13.5"
MODULE = f"github.com/ollama/ollama@v{VERSION}"
#: The oldest Go that the module accepts.
GO_NEEDED = "1.24.1"
#: Go leaves directories named "vendor" out of a module's archive, and Ollama keeps these headers in one. They come from
#: modules that have them elsewhere: {name in an include line: (module, path in it)}.
HEADERS = {
    "nlohmann/json.hpp": ("github.com/ollama/ollama@v0.5.13", "llama/llama.cpp/common/json.hpp"),
    "nlohmann/json_fwd.hpp": ("github.com/ollama/ollama@v0.5.13", "llama/llama.cpp/common/json.hpp"),
    "stb/stb_image.h": ("github.com/ollama/ollama@v0.5.13", "llama/llama.cpp/common/stb_image.h"),
    "miniaudio/miniaudio.h": ("github.com/gen2brain/malgo@v0.11.24", "miniaudio.h"),
}
#: Linked statically, the binary runs on any Debian, whichever this machine is.
LINK = f"-s -w -X=github.com/ollama/ollama/version.Version={VERSION} -extldflags=-static"
FLAGS = ["-trimpath", "-tags", "netgo,osusergo", "-ldflags", LINK]


def ensure():
    """Build the server unless the same recipe was built before.

    :returns: path of the ``ollama`` binary
    :raises LabError: what the machine lacks, or the end of what the build printed
    """
    recipe = hashlib.sha256(repr((MODULE, HEADERS, FLAGS)).encode()).hexdigest()[:12]
    binary = CACHE / f"{VERSION}-{recipe}" / "ollama"
    if binary.exists():
        return binary
    if not shutil.which("g++"):
        raise LabError("building Ollama needs a C++ compiler: install the package g++ and run this again")
    go = _go()
    say(f"Ollama {VERSION}: building the server (several minutes, once)")
    binary.parent.mkdir(parents=True, exist_ok=True)
    # The include path stays the same, so that Go's cache knows what an interrupted build has compiled.
    include = CACHE / "include"
    _link_headers(go, include)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        environment = _environment() | {"CGO_CPPFLAGS": f"-I{include}", "GOBIN": scratch}
        run("nice", "-n", "19", go, "install", *FLAGS, MODULE, env=environment)
        # It appears whole or not at all, and whoever builds at the same time gets the same.
        (pathlib.Path(scratch) / "ollama").replace(binary)
    return binary


def model():
    """Have the tiny model's files; returns the value for ``ollama_models``."""
    return tiny_model.write(CACHE / "tiny")


def new_enough(version):
    """Whether the output of ``go version`` names a release that builds the module."""
    found = re.search(r"\bgo(\d+(?:\.\d+)+)", version)
    return bool(found) and [*map(int, found[1].split("."))] >= [*map(int, GO_NEEDED.split("."))]


def _environment():
    return os.environ | {"CGO_ENABLED": "1", "GOTOOLCHAIN": "local", "GOFLAGS": ""}


def _go():
    """Path of a Go that is new enough; ``lab/bootstrap`` puts one into ``.venv`` where the machine has none."""
    own = shutil.which("go")
    if own and new_enough(run(own, "version", env=_environment(), check=False)):
        return own
    raise LabError(f"building Ollama needs Go {GO_NEEDED} or newer: run lab/bootstrap, which brings one, and then this again")


def _link_headers(go, directory):
    """Fetch the modules that carry the headers, which Go checks against its checksum database, and link the files."""
    modules = sorted({module for module, _path in HEADERS.values()})
    # The answer is one JSON object after the other.
    answers = run(go, "mod", "download", "-json", *modules, env=_environment(), cwd=CACHE)
    folders, decoder = {}, json.JSONDecoder()
    while answers:
        answer, end = decoder.raw_decode(answers)
        folders[f"{answer['Path']}@{answer['Version']}"] = pathlib.Path(answer["Dir"])
        answers = answers[end:].lstrip()
    for name, (module, path) in HEADERS.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).unlink(missing_ok=True)
        (directory / name).symlink_to(folders[module] / path)
