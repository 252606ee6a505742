# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that lead a module into Redis and Sentinel."""

from __future__ import annotations


_SUBOPTIONS = r"""
      username:
        description: ACL user; without one, the user C(default).
        type: str
      password:
        description: The user's password.
        type: str
      tls_ca:
        description: Path of the authority's certificate on the host where the module runs; TLS is spoken when it is given.
        type: path
      tls_cert:
        description: Path of the client's certificate, for servers that want one.
        type: path
      tls_key:
        description: Path of the client's private key.
        type: path
"""


def _option(name, description):
    """One option that leads into the servers of a kind."""
    return f"""
  {name}:
    description: {description}
    type: dict
    default: {{}}
    suboptions:{_SUBOPTIONS.rstrip()}"""


_REDIS = _option("redis_access", "How to get into the Redis servers.")
_SENTINEL = _option("sentinel_access", "How to get into the Sentinels.")
_REQUIREMENTS = """
requirements:
  - redis (the Python library)
"""


class ModuleDocFragment:
    """C(openclaw.ha.access): both options; C(openclaw.ha.access.redis): only that of Redis."""

    REDIS = f"options:{_REDIS}{_REQUIREMENTS}"
    DOCUMENTATION = f"options:{_REDIS}{_SENTINEL}{_REQUIREMENTS}"
