# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of a rolling change."""

from __future__ import annotations

from ansible_collections.openclaw.ha.plugins.module_utils import rolling, rollout_report


class FilterModule:
    """Ansible's entry point."""

    def filters(self):
        return {"canary_problem": rolling.judge_canary, "rollout_report": rollout_report.collect, "rollout_page": rollout_report.page}
