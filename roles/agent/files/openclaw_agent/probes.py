# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking: each function does one thing to the world and brings home what it saw. What that means is in ``checks``."""

from __future__ import annotations

import asyncio
import ctypes
import datetime
import errno
import glob
import os
import re
import socket
import ssl

from . import checks

_LIMIT = 65536
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


async def get(session, port, path):
    """(HTTP status, text) of a gateway's own answer on this host.

    Asked by the loopback address: a balancer may share the host, and a gateway refuses a trusted proxy that names no client.
    """
    async with session.get(f"http://127.0.0.1:{port}{path}", allow_redirects=False) as response:
        return response.status, (await response.content.read(_LIMIT)).decode("utf-8", "replace")


async def units(names):
    """Properties of each unit by name; raises OSError when systemd does not tell."""
    command = ("systemctl", "show", f"--property={','.join(checks.UNIT_PROPERTIES)}", "--", *names)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    try:
        out, err = await process.communicate()
    finally:
        # Cut off at the deadline: it must not stay behind.
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise OSError(f"systemctl: {err.decode('utf-8', 'replace').strip()}")
    return checks.parse_show(out.decode("utf-8", "replace"))


def spaces(paths):
    """Path -> :class:`checks.Space`, or why it is unknown."""
    found = {}
    for path in paths:
        try:
            found[path] = checks.space(os.statvfs(path))
        except OSError as error:
            found[path] = error.strerror or str(error)
    return found


async def handshake(host, port, ca_file, timeout):
    """A verified TLS handshake with a server; returns (why it failed or None, when its certificate ends or None)."""
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
        async with asyncio.timeout(timeout):
            _reader, writer = await asyncio.open_connection(host, port, ssl=context)
    except TimeoutError:
        return f"no handshake within {timeout:g} s", None
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is refused: {error.verify_message}", None
    except (ssl.SSLError, socket.gaierror) as error:
        return getattr(error, "reason", None) or error.strerror or str(error), None
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error) or type(error).__name__, None
    try:
        ends = (writer.get_extra_info("peercert") or {}).get("notAfter")
        return None, ssl.cert_time_to_seconds(ends) if ends else None
    finally:
        writer.transport.abort()


def certificates(patterns):
    """When the certificates in files end (path -> seconds since 1970, or why that is unknown), the first to end of each file.

    Keys in the same file are not looked at. Files that are not there are left out.
    """
    from cryptography import x509  # the service itself needs it not

    found = {}
    for path in sorted({path for pattern in patterns for path in glob.glob(pattern)}):
        try:
            with open(path, "rb") as file:
                blocks = _PEM.findall(file.read())
            ends = [_end(x509.load_pem_x509_certificate(block)) for block in blocks]
        except (OSError, ValueError) as error:
            found[path] = f"cannot be read: {error}"
            continue
        found[path] = min(ends) if ends else "holds no certificate"
    return found


def _end(certificate):
    if hasattr(certificate, "not_valid_after_utc"):
        return certificate.not_valid_after_utc.timestamp()
    return certificate.not_valid_after.replace(tzinfo=datetime.timezone.utc).timestamp()


class _Timex(ctypes.Structure):
    """The beginning of struct timex (linux/timex.h), and room for the rest."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    ]


def clock():
    """The :class:`checks.Clock` of the kernel; with modes 0 adjtimex only reads."""
    libc = ctypes.CDLL(None, use_errno=True)
    timex = _Timex()
    result = libc.adjtimex(ctypes.byref(timex))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code or errno.EPERM))
    return checks.kernel_clock(result, timex.status, timex.offset)
