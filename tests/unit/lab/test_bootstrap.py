"""lab/bootstrap on machines that it must not change: it says in one sentence what is missing."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture
def bootstrap(tmp_path):
    """Runs a copy of the script where only the given programs exist, as a user who is not root."""
    checkout, programs = tmp_path / "checkout", tmp_path / "bin"
    (checkout / "lab").mkdir(parents=True)
    programs.mkdir()
    shutil.copy(ROOT / "lab/bootstrap", checkout / "lab")
    (programs / "id").write_text("#!/bin/sh\necho 1000\n")
    (programs / "id").chmod(0o755)

    def run(*names, arguments=()):
        for name in ("dirname", *names):
            (programs / name).symlink_to(shutil.which(name))
        return subprocess.run(
            ["/bin/sh", checkout / "lab/bootstrap", *arguments],
            check=False,
            capture_output=True,
            text=True,
            env={"PATH": str(programs), "HOME": str(tmp_path)},
            timeout=30,
        )

    run.checkout = checkout
    return run


def test_what_is_missing_is_said_in_one_sentence(bootstrap):
    done = bootstrap("python3")
    assert done.returncode == 1
    assert done.stdout == ""
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("lab: this machine lacks git ")
    for package in ("docker.io", "mmdebstrap", "openssh-client", "redis-server"):
        assert f" {package}" in sentence
    assert "run this as root on Debian 12 or 13" in sentence
    assert os.listdir(bootstrap.checkout) == ["lab"], "something was written"


def test_without_the_lab_docker_is_not_asked_for(bootstrap):
    done = bootstrap("python3", arguments=("--tools",))
    assert done.returncode == 1
    assert "docker.io" not in done.stderr and "mmdebstrap" not in done.stderr
