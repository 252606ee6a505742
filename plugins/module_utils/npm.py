# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What npm was asked and what it meant: command lines, its errors in a few words, versions in order. Pure."""

from __future__ import annotations

import json
import re

FLAGS = ("--omit=dev", "--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error", "--json")

_UNREACHABLE = "this host does not reach the npm registry; check DNS, proxy and firewall, or fill the npm cache"
_CERTIFICATE = "TLS to the registry is not trusted; name the CA file as NODE_EXTRA_CA_CERTS in gateway_npm_environment"
_HINTS = {
    "E404": "the registry has no such package or version",
    "ETARGET": "the registry has no such version",
    "ENOTCACHED": "it is not in the npm cache, and npm was told to stay offline",
    "EINTEGRITY": "a download does not match its checksum; empty the npm cache and try again",
    "ENOSPC": "the disk is full",
    "EACCES": "npm may not write there",
    "EBADENGINE": "this Node.js is too old or too new for it; see gateway_node_version",
    "EUSAGE": "package.json and package-lock.json do not agree",
    **dict.fromkeys(("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT"), _UNREACHABLE),
    **dict.fromkeys(("ERR_SOCKET_TIMEOUT", "ENETUNREACH", "EHOSTUNREACH"), _UNREACHABLE),
    **dict.fromkeys(("SELF_SIGNED_CERT_IN_CHAIN", "DEPTH_ZERO_SELF_SIGNED_CERT"), _CERTIFICATE),
    **dict.fromkeys(("UNABLE_TO_GET_ISSUER_CERT_LOCALLY", "UNABLE_TO_VERIFY_LEAF_SIGNATURE"), _CERTIFICATE),
}


def error(out, err, rc):
    """The (code, sentence) of a failed npm run; the code is empty when npm gave none.

    npm with ``--json`` prints {"error": {"code", "summary", "detail"}} on stdout, and pages of stack trace on stderr.
    """
    code, summary = "", ""
    try:
        told = json.loads(out).get("error") or {}
        code, summary = str(told.get("code") or ""), str(told.get("summary") or "")
    except (ValueError, AttributeError):
        pass
    words = [
        re.sub(r"^npm (error|ERR!) ?", "", line).strip()
        for line in err.splitlines()
        if re.match("npm (error|ERR!)", line)
    ]
    if not code:
        code = next((line.split()[1] for line in words if re.fullmatch(r"code \S+", line)), "")
    if not summary:
        noise = re.compile(r"(code|errno|syscall|path|\d{3}$) |at |A complete log|[{}]|$")
        summary = (
            " ".join([line for line in words if not noise.match(line)][:3]) or err.strip()[-300:] or out.strip()[-300:]
        )
    summary = re.sub(r"\s+", " ", summary)[:300].rstrip(". ")
    text = ": ".join(part for part in (code, summary) if part) or f"npm ended with status {rc} and said nothing"
    hint = _HINTS.get(code)
    return code, f"{text} ({hint})." if hint else f"{text}."


def is_missing(code):
    """Whether an error says that the thing does not exist, rather than that nobody could say."""
    return code in ("E404", "ETARGET")


def version_key(version):
    """Sort key: numeric parts first, and a pre-release before its release."""
    main, dash, suffix = str(version).partition("-")
    parts = tuple(int(part) if part.isdigit() else -1 for part in main.split("."))
    rest = (
        tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"[.-]", suffix))
        if dash
        else ()
    )
    return parts, not dash, rest


def newest(versions, count=5):
    """The newest versions, newest first, releases only where there are any."""
    ordered = sorted((str(version) for version in versions), key=version_key, reverse=True)
    return ([version for version in ordered if "-" not in version] or ordered)[:count]


def environment(base, cache, extra, node_directory):
    """The environment of an npm run: the node beside npm first on PATH, its cache, nothing interactive."""
    return {
        **({} if base.get("HOME") else {"HOME": "/root"}),
        "PATH": ":".join(part for part in (node_directory, base.get("PATH") or "/usr/local/bin:/usr/bin:/bin") if part),
        **({"npm_config_cache": cache} if cache else {}),
        "npm_config_update_notifier": "false",
        **{str(name): str(value) for name, value in (extra or {}).items()},
    }
