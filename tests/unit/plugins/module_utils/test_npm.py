from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.openclaw.ha.plugins.module_utils import npm

TRACE = """npm warn Unknown user config "x".
npm error code ECONNREFUSED
npm error syscall connect
npm error errno ECONNREFUSED
npm error FetchError: request to http://127.0.0.1:1/openclaw failed, reason: connect ECONNREFUSED 127.0.0.1:1
npm error     at ClientRequest.<anonymous> (/npm/lib/index.js:130:14)
npm error   code: 'ECONNREFUSED',
npm error }
npm error A complete log of this run can be found in: /root/.npm/_logs/debug-0.log
"""


def told(code, summary):
    return json.dumps({"error": {"code": code, "summary": summary, "detail": "pages " * 500}})


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("E404", "no such package or version"),
        ("ETARGET", "no such version"),
        ("ENOTFOUND", "does not reach the npm registry"),
        ("ETIMEDOUT", "does not reach the npm registry"),
        ("SELF_SIGNED_CERT_IN_CHAIN", "NODE_EXTRA_CA_CERTS in gateway_npm_environment"),
        ("EINTEGRITY", "empty the npm cache"),
        ("ENOSPC", "the disk is full"),
    ],
)
def test_errors_say_what_to_do(code, hint):
    found, text = npm.error(told(code, "Something.\n  happened."), TRACE, 1)
    assert found == code and text.startswith(f"{code}: Something. happened") and hint in text and len(text) < 500


def test_an_unknown_code_has_no_hint():
    assert npm.error(told("EWEIRD", "Odd."), "", 1) == ("EWEIRD", "EWEIRD: Odd.")


def test_without_json_the_trace_is_trimmed():
    code, text = npm.error("", TRACE, 1)
    assert code == "ECONNREFUSED" and "FetchError: request to http://127.0.0.1:1/openclaw failed" in text
    assert "ClientRequest" not in text and "complete log" not in text and "errno" not in text


@pytest.mark.parametrize("out", ["", "[]", "null", '{"error": null}', "{}"])
def test_npm_that_says_nothing(out):
    assert npm.error(out, "", 7) in [("", "npm ended with status 7 and said nothing."), ("", f"{out}.")]


@given(st.text(), st.text(), st.integers(1, 255))
def test_any_output_makes_a_short_sentence(out, err, rc):
    code, text = npm.error(out, err, rc)
    assert text.endswith(".") and len(text) < 700


def test_newest_first_and_releases_only():
    versions = ["2026.9.5", "2026.10.0-beta.2", "2026.9.10", "2026.9.6", "2025.12.31", "2026.10.0-beta.10"]
    assert npm.newest(versions, 3) == ["2026.9.10", "2026.9.6", "2026.9.5"]
    assert npm.newest(["1.0.0-beta.2", "1.0.0-beta.10"]) == ["1.0.0-beta.10", "1.0.0-beta.2"]
    assert npm.newest([]) == []


@given(st.lists(st.text(alphabet="0123456789.-ab", max_size=12), max_size=6))
def test_any_versions_can_be_ordered(versions):
    assert sorted(sorted(versions, key=npm.version_key), key=npm.version_key) == sorted(versions, key=npm.version_key)


def test_environment():
    made = npm.environment(
        {"PATH": "/bin", "HOME": "/h"}, "/cache", {"NODE_EXTRA_CA_CERTS": "/ca.pem"}, "/opt/node/bin"
    )
    assert made["PATH"] == "/opt/node/bin:/bin" and made["npm_config_cache"] == "/cache"
    assert made["NODE_EXTRA_CA_CERTS"] == "/ca.pem" and "HOME" not in made
    assert npm.environment({}, "", {}, "/opt/node/bin")["HOME"] == "/root"
