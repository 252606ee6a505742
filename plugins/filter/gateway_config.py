# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that build what a gateway replica reads at its start."""

from __future__ import annotations

from ansible.errors import AnsibleFilterError

from ansible_collections.openclaw.ha.plugins.module_utils import gateway_config as pure


def gateway_config(replica, topology, options):
    """See gateway_config.yml."""
    try:
        return {
            "config": pure.config(replica, topology, options),
            "settings": pure.settings(pure.provider_chain(options["providers"], topology, replica)),
            "environment": pure.environment(replica, options),
            "includes": pure.includes(options),
        }
    except pure.GatewayConfigError as error:
        raise AnsibleFilterError(str(error)) from error


def gateway_secrets(providers, token, redis_password="", sentinel_password="", extra=None, channels=None):
    """See gateway_secrets.yml."""
    try:
        return pure.env_file(pure.secrets(providers, token, redis_password, sentinel_password, extra, channels))
    except pure.GatewayConfigError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Ansible's entry point."""

    def filters(self):
        return {"gateway_config": gateway_config, "gateway_peers": pure.peers, "gateway_secrets": gateway_secrets}
