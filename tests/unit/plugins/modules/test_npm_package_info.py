"""What the registry says, told by an npm on disk."""

from __future__ import annotations

import json

import pytest

from ansible_collections.openclaw.ha.plugins.modules import npm_package_info

NPM = """
import json, pathlib, sys
answers = json.loads(pathlib.Path(__file__).with_name("answers").read_text())
with open(pathlib.Path(__file__).with_name("calls"), "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
rc, out, err = answers["versions" if "versions" in sys.argv else "version"]
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(rc)
"""


def error(code):
    return [
        1,
        json.dumps({"error": {"code": code, "summary": "No match found for version", "detail": ""}}),
        "npm error code x",
    ]


VERSIONS = [0, json.dumps(["2026.9.5", "2026.9.6", "2026.10.0-beta.1", "2026.9.4"]), ""]


@pytest.fixture
def ask(run_module, program, tmp_path):
    path = program("npm", NPM)

    def run(answer):
        (path.parent / "answers").write_text(json.dumps({"version": answer}))
        return run_module(npm_package_info, name="openclaw", version="2026.9.6", executable=str(path))

    run.calls = path.parent / "calls"
    return run


def test_it_exists(ask):
    result = ask([0, '"2026.9.6"\n', "npm warn x"])
    assert (result["failed"], result["changed"], result["available"]) == (False, False, "true")
    assert "openclaw@2026.9.6 version --json" in ask.calls.read_text() and "--fetch-retries=0" in ask.calls.read_text()


@pytest.mark.parametrize("answer", [error("E404"), error("ETARGET"), [0, "", ""]])
def test_it_does_not_exist(run_module, program, answer):
    path = program("npm", NPM)
    (path.parent / "answers").write_text(json.dumps({"version": answer, "versions": VERSIONS}))
    result = run_module(npm_package_info, name="openclaw", version="2026.9.66", executable=str(path))
    assert (result["failed"], result["available"]) == (False, "false")
    assert result["newest"] == ["2026.9.6", "2026.9.5", "2026.9.4"]
    assert (
        result["reason"]
        == "openclaw 2026.9.66 is not in the npm registry; the newest versions are 2026.9.6, 2026.9.5, 2026.9.4."
    )


@pytest.mark.parametrize(
    ("versions", "reason"),
    [
        (error("E404"), "There is no package openclaw in the npm registry."),
        (error("ETIMEDOUT"), "openclaw 9 is not in the npm registry."),
        ([0, "garbage", ""], "openclaw 9 is not in the npm registry."),
        ([0, '"1.0.0"', ""], "openclaw 9 is not in the npm registry; the newest versions are 1.0.0."),
    ],
)
def test_why_there_are_no_newest(run_module, program, versions, reason):
    path = program("npm", NPM)
    (path.parent / "answers").write_text(json.dumps({"version": error("E404"), "versions": versions}))
    result = run_module(npm_package_info, name="openclaw", version="9", executable=str(path))
    assert (result["available"], result["reason"]) == ("false", reason)


@pytest.mark.parametrize("code", ["ENOTFOUND", "ECONNREFUSED", "SELF_SIGNED_CERT_IN_CHAIN", "E401", "EWEIRD"])
def test_a_registry_that_cannot_be_asked_is_no_answer(ask, code):
    result = ask(error(code))
    assert (result["failed"], result["available"]) == (False, "unknown")
    assert f"could not be asked: {code}:" in result["reason"]


def test_npm_that_dies_is_no_answer(ask):
    assert ask([134, "", "Aborted"])["available"] == "unknown"


def test_no_npm(run_module, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for more in ({}, {"executable": str(tmp_path / "npm")}, {"candidates": [str(tmp_path / "*" / "npm")]}):
        result = run_module(npm_package_info, name="openclaw", version="1", **more)
        assert (result["available"], result["executable"]) == ("unknown", "") and "there is no npm" in result["reason"]


def test_where_npm_is_looked_for(tmp_path, monkeypatch):
    places = {}
    for name in ("24.9.0", "24.19.0", "path"):
        places[name] = tmp_path / name / "npm"
        places[name].parent.mkdir()
        places[name].write_text("")
        places[name].chmod(0o755)
    monkeypatch.setenv("PATH", str(places["path"].parent))
    assert npm_package_info.find(str(places["24.9.0"]), []) == str(places["24.9.0"])
    assert npm_package_info.find(None, [str(tmp_path / "none"), str(tmp_path / "24.*" / "npm")]) == str(
        places["24.19.0"]
    )
    assert npm_package_info.find(None, []) == str(places["path"])
    places["24.19.0"].chmod(0o644)
    assert npm_package_info.find(None, [str(tmp_path / "24.*" / "npm")]) == str(places["24.9.0"])
