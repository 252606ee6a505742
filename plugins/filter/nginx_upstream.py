# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter that renders nginx's list of gateway replicas."""

from __future__ import annotations

from ansible_collections.openclaw.ha.plugins.module_utils import nginx_upstream as pure


def nginx_upstream(replicas, drained=""):
    """See nginx_upstream.yml."""
    return pure.render(replicas, pure.ids(drained))


class FilterModule:
    """Ansible's entry point."""

    def filters(self):
        return {"nginx_upstream": nginx_upstream}
