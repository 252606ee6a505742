# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of playbooks/backup.yml and playbooks/restore.yml."""

from __future__ import annotations

import time

from ansible_collections.openclaw.ha.plugins.module_utils import backup, status


def table(said):
    """Backups of hosts as aligned lines, and what else there is to say."""
    rows, notes = backup.told(said, time.time())
    return (status.columns(backup.lines(rows)) if rows else []) + notes


class FilterModule:
    """Ansible's entry point."""

    def filters(self):
        return {
            "backup_said": backup.said,
            "backup_table": table,
            "restore_target": backup.restore_target,
            "restore_problems": backup.restore_problems,
        }
