# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A word to systemd, for the programs that it starts with ``Type=notify``."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger("openclaw_ingress")


def notify(text):
    """Tell systemd, when it has started this."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
        notifier.setblocking(False)
        try:
            notifier.sendto(text.encode(), "\0" + path[1:] if path.startswith("@") else path)
        except OSError as error:
            log.warning("systemd cannot be told %s: %s", text, error)
