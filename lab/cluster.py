"""A cluster of test hosts: its network, its containers, its secrets, and the inventory that leads Ansible to them."""

import ipaddress
import json
import os
import pathlib
import secrets
import shlex
import socket
import subprocess

from plugins.module_utils.redis_access import passwords

from . import image, ollama
from .shell import LabError, run, say, wait_for

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAB = ROOT / ".lab"
LABEL = image.LABEL
DOUBLES = ROOT / "tests/doubles"
LLM_PORT = 9100
#: Position of the virtual address, where the sample inventory has one; that of a second datacenter is the one before.
VIP_OFFSET = 10
TELEGRAM_PORT = 8081
#: Bots of the Telegram double: number -> mode of the account. People with these ids may write to them.
BOTS = {101: "webhook", 102: "polling"}
PEOPLE = range(4200, 4300)
#: Goes to a person who writes nothing.
JOB = {"name": "tick", "schedule": "* * * * *", "message": "What is new?", "deliver": {"account": "telegram/webhook", "to": str(PEOPLE[-1])}}
#: Positions of the doubles' containers in the cluster's network; hosts count from 11.
DOUBLES_OFFSET, TELEGRAM_OFFSET = 250, 251


class Cluster:
    """One cluster of ``clusters.json``. Everything it owns carries its name, and the label ``openclaw-lab``.

    A cluster with a ``group`` consists of that group's hosts alone, without gateways: neither their caches nor the
    doubles are needed, and its runs are limited to the group.
    """

    def __init__(self, name):
        clusters = json.loads((ROOT / "lab/clusters.json").read_text())
        if name not in clusters:
            raise LabError(f"there is no lab cluster {name!r}; lab/clusters.json knows {', '.join(clusters)}")
        self.name = name
        self.suite = clusters[name].get("suite", "bookworm")
        self.group = clusters[name].get("group")
        self.prefix = f"openclaw-lab-{name.replace('_', '-')}"
        self.sample = ROOT / clusters[name]["inventory"]
        #: Whether its Ollama is the real server, with a tiny model, instead of the double.
        self.real_ollama = clusters[name].get("ollama") == "real"
        #: Messaging channels that it has; Telegram is a double.
        self.channels = clusters[name].get("channels", [])
        #: Whether a job runs each minute, whose answers go to a chat of the Telegram double.
        self.has_jobs = clusters[name].get("jobs", False)
        self.network = ipaddress.ip_network(clusters[name]["subnet"])
        # The demo is what a person meets first, so its files lie at the top.
        self.directory = LAB if name == "demo" else LAB / name
        self.inventory = LAB / name / "inventory"
        listed = json.loads(run(ROOT / ".venv/bin/ansible-inventory", "--inventory", self.sample, "--list", cwd=ROOT))
        #: Whether it has name servers of its own.
        self.has_dns = bool(listed.get("openclaw_dns", {}).get("hosts"))
        self.hosts = {host: str(self.network[11 + number]) for number, host in enumerate(_hosts(listed, self.group))}
        published = {host: variables["vip_address"] for host, variables in listed["_meta"]["hostvars"].items() if variables.get("vip_address")}
        places = list(dict.fromkeys(published[host] for host in self.hosts if host in published))
        #: The virtual address of each host's datacenter.
        self.vips = {host: str(self.network[VIP_OFFSET - places.index(published[host])]) for host in self.hosts if host in published}
        self.vip = next(iter(self.vips.values()), None)
        self.doubles_address = str(self.network[DOUBLES_OFFSET])
        self.llm_url = f"http://{self.doubles_address}:{LLM_PORT}"
        self.telegram_address = str(self.network[TELEGRAM_OFFSET])
        self.telegram_url = f"http://{self.telegram_address}:{TELEGRAM_PORT}"

    def container(self, host):
        """The container's name of a host."""
        return f"{self.prefix}-{host}"

    @property
    def inventories(self):
        """Arguments for ``ansible-playbook``: the sample as it is published, and the lab's addresses and secrets on top."""
        limit = ["--limit", f"{self.group},localhost"] if self.group else []
        return ["--inventory", str(self.sample), "--inventory", str(self.inventory), *limit]

    def holders(self):
        """Names of the hosts that hold the virtual address now; sound is exactly one."""
        command = ("ip", "-oneline", "-4", "address", "show", "to", self.vip)
        return [host for host in self.hosts if self.vip and run("docker", "exec", self.container(host), *command, check=False)]

    def create(self):
        """Create what is missing of the cluster; does nothing when all of it runs."""
        self._write_inventory()
        if not run("docker", "network", "ls", "--quiet", "--filter", f"name=^{self.prefix}$"):
            run("docker", "network", "create", "--label", LABEL, "--subnet", self.network, self.prefix)
        running = run("docker", "ps", "--filter", f"network={self.prefix}", "--format", "{{.Names}}").split()
        missing = [host for host in self.hosts if self.container(host) not in running]
        if running and not self._known_hosts().exists():
            raise LabError(f"the hosts of {self.name} are those of another checkout: remove them with `python -m lab destroy {self.name}`, here or there")
        doubles = not self.group and f"{self.prefix}-doubles" not in running
        telegram = "telegram" in self.channels and f"{self.prefix}-telegram" not in running
        name = image.ensure(self.suite, caches=not self.group) if missing or doubles or telegram else None
        for host in missing:
            say(f"host {host}: {self.hosts[host]}")
            self._start_host(name, host)
        if doubles:
            self._start_double(name, "doubles", self.doubles_address, "llm_double.py", "--port", LLM_PORT)
        if telegram:
            # Certificates of the lab's own authority are nobody else's.
            bots = (part for number in BOTS for part in ("--bot", self.bot_token(number)))
            self._start_double(name, "telegram", self.telegram_address, "telegram_double.py", "--port", TELEGRAM_PORT, "--insecure", *bots)
        if missing:
            self._write_known_hosts()
        for host in missing:
            wait_for(f"a host {host} that has started and lets us in", lambda host=host: self._has_started(host), 60)
        if not self.group:
            wait_for("the LLM double", lambda: _answers(self.doubles_address, LLM_PORT), 15)
        if "telegram" in self.channels:
            wait_for("the Telegram double", lambda: _answers(self.telegram_address, TELEGRAM_PORT), 15)

    def destroy(self):
        """Remove the cluster's containers, its network and its files; nothing else."""
        containers = run("docker", "ps", "--all", "--filter", f"network={self.prefix}", "--format", "{{.Names}}").split()
        if containers:
            run("docker", "rm", "--force", "--volumes", *containers)
        if run("docker", "network", "ls", "--quiet", "--filter", f"name=^{self.prefix}$"):
            run("docker", "network", "rm", self.prefix)
        for path in sorted((LAB / self.name).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        if (LAB / self.name).is_dir():
            (LAB / self.name).rmdir()
        (self.directory / "env").unlink(missing_ok=True)

    def _start_host(self, image_name, host):
        """Start a systemd host. Capabilities are dropped that could reach the machine itself, its clock above all."""
        run("docker", "rm", "--force", "--volumes", self.container(host), check=False)  # one that a restart of the machine has stopped
        run(
            "docker", "run", "--detach", "--name", self.container(host), "--hostname", host, "--label", LABEL,
            "--network", self.prefix, "--ip", self.hosts[host],
            "--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE", "--cap-drop", "SYS_TIME",
            "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined",
            "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw", "--cgroupns", "host", "--tmpfs", "/run", "--tmpfs", "/run/lock",
            # A balancer listens on the virtual address before it holds it.
            "--sysctl", "net.ipv4.ip_nonlocal_bind=1",
            *image.ca_mount(), image_name, "/sbin/init",
        )  # fmt: skip
        environment = f"NODE_EXTRA_CA_CERTS={image.CA_BUNDLE}\nPIP_CERT={image.CA_BUNDLE}\n" if image.ca_mount() else ""
        script = "cat > /root/.ssh/authorized_keys && chmod 600 /root/.ssh/authorized_keys"
        self._pipe(host, script, self._key().with_suffix(".pub").read_text())
        self._pipe(host, "cat >> /etc/environment", environment)

    def _pipe(self, host, script, text):
        command = ["docker", "exec", "--interactive", self.container(host), "sh", "-c", script]
        subprocess.run(command, input=text, text=True, check=True, capture_output=True)

    def _has_started(self, host):
        """Whether the host's systemd has done all its work, asked in the way in which Ansible will come.

        An sshd that answers may still refuse or hold up a login while the host starts.
        """
        run(
            "ssh", "-F", "none", "-i", self._key(), "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", *shlex.split(self._ssh_arguments()),
            f"root@{self.hosts[host]}", "timeout 30 systemctl is-system-running --wait | grep -qE 'running|degraded'",
        )  # fmt: skip
        return True

    def _ssh_arguments(self):
        return f"-o UserKnownHostsFile={self._known_hosts()} -o StrictHostKeyChecking=yes"

    def _start_double(self, image_name, name, address, program, *arguments):
        """A stand-in for what is elsewhere runs beside the hosts, in a container of its own."""
        run("docker", "rm", "--force", "--volumes", f"{self.prefix}-{name}", check=False)
        run(
            "docker", "run", "--detach", "--init", "--name", f"{self.prefix}-{name}", "--label", LABEL,
            "--network", self.prefix, "--ip", address, "--volume", f"{DOUBLES}:/doubles:ro",
            image_name, "python3", "-B", f"/doubles/{program}", "--host", "0.0.0.0", *arguments,
        )  # fmt: skip

    def _key(self):
        key = LAB / "ssh" / "id_ed25519"
        if not key.exists():
            key.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "openclaw-lab", "-f", key)
        return key

    def _known_hosts(self):
        return LAB / self.name / "known_hosts"

    def _write_known_hosts(self):
        lines = []
        for host, address in self.hosts.items():
            public = run("docker", "exec", self.container(host), "cat", "/etc/ssh/ssh_host_ed25519_key.pub").split()
            lines.append(f"{address} {public[0]} {public[1]}\n")
        self._known_hosts().write_text("".join(lines))

    def secret(self, name):
        """Path of a generated secret (mode 0600); made when it does not exist."""
        path = LAB / self.name / "secrets" / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(path, secrets.token_hex(24) + "\n")
        return path

    def rotate(self, name):
        """Replace a generated secret by a new one, as an operator would; site.yml then brings it to the hosts."""
        write_private(self.secret(name), secrets.token_hex(24) + "\n")

    @property
    def authority(self):
        """Directory of the cluster's certificate authority, made by the first run of site.yml."""
        return LAB / self.name / "authority"

    def client_certificate(self):
        """Paths of the authority's certificate, a client certificate for this machine and its key: ``tls_ca``, ``tls_cert``, ``tls_key``.

        Empty where Redis speaks no TLS.
        """
        names = {"tls_ca": "ca.pem", "tls_cert": "client.pem", "tls_key": "client.key"}
        paths = {key: self.authority / name for key, name in names.items()}
        if not paths["tls_ca"].exists():
            return {}
        if not paths["tls_cert"].exists():
            run(
                "openssl", "req", "-x509", "-CA", paths["tls_ca"], "-CAkey", self.authority / "ca.key", "-days", "30", "-noenc",
                "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=lab", "-addext", "extendedKeyUsage=clientAuth",
                "-keyout", paths["tls_key"], "-out", paths["tls_cert"],
            )  # fmt: skip
        return {key: str(path) for key, path in paths.items()}

    def access(self, kind, user):
        """What leads a user into the servers of a kind (``redis``, ``sentinel``) from this machine; see module_utils/redis_client.py."""
        secret = self.secret(f"{kind}_password").read_text().strip()
        return {"username": user, "password": passwords(secret, kind)[user], **self.client_certificate()}

    def _provider(self):
        """The lab's first provider: the LLM double, or a real endpoint that the environment names."""
        endpoint = os.environ.get("LLM_ENDPOINT")
        if not endpoint:
            return {"name": "cloud", "endpoint": f"{self.llm_url}/v1", "model": "double", "api_key": _lookup(self.secret("llm_key"))}
        absent = [name for name in ("LLM_API_KEY", "LLM_MODEL") if not os.environ.get(name)]
        if absent:
            raise LabError(f"LLM_ENDPOINT is set, but {' and '.join(absent)} is not; set all three, or none to use the double")
        key = LAB / self.name / "secrets" / "llm_api_key"
        self.secret("gateway_token")  # makes the directory
        write_private(key, os.environ["LLM_API_KEY"] + "\n")
        return {"name": "cloud", "endpoint": endpoint, "model": os.environ["LLM_MODEL"], "api_key": _lookup(key)}

    def bot_token(self, number):
        """Token of a bot at the Telegram double."""
        return f"{number}:{self.secret(f'telegram_{number}').read_text().strip()}"

    def _accounts(self):
        """Accounts of the Telegram double's bots, and one of WhatsApp that nobody has logged in to."""
        settings = {"apiRoot": self.telegram_url}
        accounts = []
        for number, mode in BOTS.items():
            secrets = {"bot_token": f"{number}:" + _lookup(self.secret(f"telegram_{number}"))}
            if mode == "webhook":
                secrets["webhook_secret"] = _lookup(self.secret("telegram_webhook"))
            accounts.append(
                {"type": "telegram", "account": mode, "mode": mode, "secrets": secrets, "allow_from": list(PEOPLE), "settings": settings}
            )
        accounts.append({"type": "whatsapp", "account": "main", "allow_from": ["+15550001"]})
        return {
            "gateway_channels": [one for one in accounts if one["type"] in self.channels],
            "gateway_public_url": f"https://{self.vip}:8443",
            "gateway_jobs": [JOB] if self.has_jobs else [],
            "balancer_tls": True,
            "balancer_plain": "serve",
        }

    def _write_inventory(self):
        """Addresses and secrets of the lab, laid over the sample inventory. JSON is YAML that needs no library."""
        variables = {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self._key()),
            "ansible_ssh_common_args": self._ssh_arguments(),
            "gateway_token": _lookup(self.secret("gateway_token")),
            "redis_password": _lookup(self.secret("redis_password")),
            "sentinel_password": _lookup(self.secret("sentinel_password")),
            "certificate_authority": str(self.authority),
            "gateway_providers": [
                {"type": "openai-compatible", "timeout": 10, "retries": 2, **self._provider()},
                {"name": "ollama", "type": "ollama", "model": "tiny:latest", "timeout": 30, "retries": 1},
            ],
            **({"dns_key_secret": _lookup(self.secret("dns_key"))} if self.has_dns else {}),
            **(self._accounts() if self.channels else {}),
            # Containers share the machine's clock, which is not theirs to keep.
            "agent_clock_check": False,
            "ollama_binary": str(ollama.ensure() if self.real_ollama else DOUBLES / "ollama_double.py"),
            "ollama_models": ollama.model() if self.real_ollama else [{"name": "tiny:latest"}],
        }
        (self.inventory / "group_vars").mkdir(parents=True, exist_ok=True)
        (self.inventory / "group_vars" / "all.json").write_text(json.dumps(variables, indent=2))
        hosts = {host: {"ansible_host": address, **({"vip_address": self.vips[host]} if host in self.vips else {})} for host, address in self.hosts.items()}
        (self.inventory / "hosts.json").write_text(json.dumps({"openclaw": {"hosts": hosts}}, indent=2))


def write_private(path, text):
    """Write a file that only its owner can read, and was never readable to others."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def _lookup(path):
    return "{{ lookup('openclaw.ha.secret_file', '" + str(path) + "') }}"


def _hosts(listed, only):
    groups = [only] if only else [group for group in listed if group.startswith("openclaw_")]
    return sorted({host for group in groups for host in listed[group].get("hosts", [])})


def _answers(address, port):
    try:
        with socket.create_connection((address, port), timeout=1):
            return True
    except OSError:
        return False
