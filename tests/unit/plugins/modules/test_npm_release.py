"""Installations with an npm on disk that behaves, misbehaves or dies on command."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from ansible_collections.openclaw.ha.plugins.modules import npm_release

NPM = """
import json, os, pathlib, signal, sys
here = pathlib.Path(__file__).parent
with open(here / "calls", "a") as log:
    log.write(json.dumps({"words": sys.argv[1:], "environment": dict(os.environ), "umask": os.umask(0o022)}) + "\\n")
mode = (here / "mode").read_text() if (here / "mode").exists() else "ok"
prefix = pathlib.Path(sys.argv[sys.argv.index("--prefix") + 1])
if sys.argv[1] == "install":
    name, version = next(word for word in sys.argv if word.startswith("openclaw@")).split("@")
    target = prefix / "node_modules" / name
    target.mkdir(parents=True)
    (target / "openclaw.mjs").write_text(version)
    if mode == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    command = {} if mode == "no command" else {"bin": {name: "openclaw.mjs"}}
    (target / "package.json").write_text(json.dumps({"version": version, **command}))
else:
    lock = (prefix / "package-lock.json").read_text()
    (prefix / "node_modules" / "dep").mkdir(parents=True)
    (prefix / "node_modules" / "dep" / "lock").write_text(lock)
if mode == "missing":
    print(json.dumps({"error": {"code": "ETARGET", "summary": "No matching version found for openclaw@" + "9"}}))
    sys.exit(1)
if mode == "offline":
    print("npm error code ENOTFOUND\\nnpm error request to https://registry.example failed", file=sys.stderr)
    sys.exit(1)
"""

NODE = """
import pathlib, sys
mode = pathlib.Path(__file__).parent / "mode"
if mode.exists() and mode.read_text() == "broken":
    print("SyntaxError: nonsense", file=sys.stderr)
    sys.exit(1)
if mode.exists() and mode.read_text() == "liar":
    print("OpenClaw 1.2.3 (abc)")
    sys.exit(0)
print("OpenClaw", pathlib.Path(sys.argv[1]).read_text(), "(abc)")
"""


@pytest.fixture
def npm(program):
    path = program("npm", NPM)
    program("node", NODE)

    def mode(text):
        (path.parent / "mode").write_text(text)

    def calls():
        log = path.parent / "calls"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    path.parent.joinpath("mode").write_text("ok")
    mode.path, mode.calls = path, calls
    return mode


@pytest.fixture
def install(run_module, npm, tmp_path):
    def run(version="2026.9.6", **more):
        place = str(tmp_path / "releases" / version)
        (tmp_path / "releases").mkdir(exist_ok=True)
        return run_module(npm_release, path=place, package="openclaw", version=version, npm=str(npm.path), **more)

    return run


@pytest.fixture
def project(run_module, npm, tmp_path):
    place = tmp_path / "plugin"
    place.mkdir()
    (place / "package.json").write_text("{}")
    (place / "package-lock.json").write_text("one")

    def run(**more):
        return run_module(npm_release, path=str(place), npm=str(npm.path), **more)

    run.path = place
    return run


def left(tmp_path):
    return sorted(path.name for path in (tmp_path / "releases").iterdir())


class TestRelease:
    def test_installed_once(self, install, npm, tmp_path):
        result = install(cache="/cache", environment={"NODE_EXTRA_CA_CERTS": "/ca.pem"})
        assert (result["failed"], result["changed"], result["before"], result["after"]) == (False, True, "", "2026.9.6")
        assert left(tmp_path) == ["2026.9.6"]
        (call,) = npm.calls()
        partial = str(tmp_path / "releases" / "2026.9.6.partial")
        assert (
            call["words"][:4] == ["install", "--prefix", partial, "--no-save"] and "openclaw@2026.9.6" in call["words"]
        )
        assert {"--omit=dev", "--no-audit", "--no-fund", "--prefer-offline"} <= set(call["words"])
        assert (
            call["environment"]["npm_config_cache"] == "/cache"
            and call["environment"]["NODE_EXTRA_CA_CERTS"] == "/ca.pem"
        )
        assert call["environment"]["PATH"].startswith(str(npm.path.parent) + ":") and call["umask"] == 0o022
        assert not install()["changed"] and len(npm.calls()) == 1

    def test_two_versions_side_by_side(self, install, tmp_path):
        assert install("2026.9.5")["changed"] and install("2026.9.6")["changed"]
        assert left(tmp_path) == ["2026.9.5", "2026.9.6"]

    def test_check_mode(self, install, npm, tmp_path):
        result = install(check=True)
        assert result["changed"] and result["diff"] == {"before": "", "after": "2026.9.6\n"}
        assert npm.calls() == [] and left(tmp_path) == []

    @pytest.mark.parametrize(
        ("mode", "text"),
        [
            ("missing", "ETARGET: No matching version found for openclaw@9 (the registry has no such version)."),
            (
                "offline",
                "ENOTFOUND: request to https://registry.example failed (this host does not reach the npm registry",
            ),
            ("killed", "npm ended with status"),
            ("broken", "does not run: it ended with status 1 and said 'SyntaxError: nonsense'"),
            ("liar", "does not run: it ended with status 0 and said 'OpenClaw 1.2.3 (abc)'"),
            ("no command", "brings no command of its own"),
        ],
    )
    def test_a_failed_installation_is_none(self, install, npm, tmp_path, mode, text):
        npm(mode)
        result = install()
        assert result["failed"] and text in result["msg"]
        assert result["msg"].startswith(f"Cannot install openclaw 2026.9.6 on {os.uname().nodename}: ")
        assert "2026.9.6" not in left(tmp_path)
        npm("ok")
        assert install()["changed"] and left(tmp_path) == ["2026.9.6"]

    def test_an_interrupted_installation_is_none(self, install, tmp_path):
        leftover = tmp_path / "releases" / "2026.9.6.partial" / "node_modules" / "openclaw"
        leftover.mkdir(parents=True)
        (leftover / "package.json").write_text('{"version": "2026.9.6"}')
        assert install()["changed"] and left(tmp_path) == ["2026.9.6"]

    @pytest.mark.parametrize("manifest", ["", "[]", "{", '{"version": "2026.9.5"}'])
    def test_a_damaged_release_is_replaced(self, install, tmp_path, manifest):
        install()
        (tmp_path / "releases" / "2026.9.6" / "node_modules" / "openclaw" / "package.json").write_text(manifest)
        assert install()["changed"] and not install()["changed"]
        assert left(tmp_path) == ["2026.9.6"]

    def test_a_damaged_release_stays_when_its_replacement_fails(self, install, npm, tmp_path):
        install()
        (tmp_path / "releases" / "2026.9.6" / "node_modules" / "openclaw" / "package.json").unlink()
        npm("offline")
        assert install()["failed"]
        assert (tmp_path / "releases" / "2026.9.6" / "node_modules" / "openclaw" / "openclaw.mjs").exists()

    def test_no_npm(self, run_module, tmp_path):
        result = run_module(
            npm_release, path=str(tmp_path / "r"), package="openclaw", version="1", npm=str(tmp_path / "none")
        )
        assert result["failed"] and f"there is no npm at {tmp_path}/none" in result["msg"]

    def test_a_place_that_cannot_be_written(self, run_module, npm, tmp_path):
        (tmp_path / "file").write_text("")
        result = run_module(
            npm_release, path=str(tmp_path / "file" / "r"), package="openclaw", version="1", npm=str(npm.path)
        )
        assert result["failed"] and str(tmp_path / "file") in result["msg"]

    def test_package_needs_a_version(self, run_module, npm, tmp_path):
        assert run_module(npm_release, path=str(tmp_path), package="openclaw", npm=str(npm.path))["failed"]


class TestProject:
    def test_once_for_each_lock_file(self, project, npm):
        first = project()
        assert first["changed"] and first["after"] == hashlib.sha256(b"one").hexdigest()
        assert (project.path / "node_modules" / "dep" / "lock").read_text() == "one"
        assert npm.calls()[0]["words"][0] == "ci"
        assert not project()["changed"]
        (project.path / "package-lock.json").write_text("two")
        second = project()
        assert second["changed"] and second["before"] == first["after"]
        assert (project.path / "node_modules" / "dep" / "lock").read_text() == "two"
        assert sorted(path.name for path in project.path.parent.iterdir() if path.name.startswith("plugin")) == [
            "plugin"
        ]
        assert not (project.path / "node_modules.old").exists()

    def test_what_was_there_stays_when_it_fails(self, project, npm):
        project()
        (project.path / "package-lock.json").write_text("two")
        npm("offline")
        result = project()
        assert result["failed"] and "what" in result["msg"] and "pins" in result["msg"]
        assert (project.path / "node_modules" / "dep" / "lock").read_text() == "one"
        npm("ok")
        assert project()["changed"]

    def test_an_installation_that_left_no_stamp_is_done_again(self, project):
        project()
        (project.path / "node_modules" / ".lock-sha256").unlink()
        assert project()["changed"] and not project()["changed"]

    def test_no_lock_file(self, project):
        (project.path / "package-lock.json").unlink()
        result = project()
        assert result["failed"] and "has no package-lock.json" in result["msg"]

    def test_check_mode_on_a_fresh_host(self, run_module, npm, tmp_path):
        result = run_module(npm_release, check=True, path=str(tmp_path / "none"), npm=str(tmp_path / "npm"))
        assert result["changed"] and not result["failed"] and npm.calls() == []
