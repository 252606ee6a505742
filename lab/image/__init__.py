"""The image of a test host: built from Debian packages, since no container registry is needed or used."""

import fcntl
import hashlib
import json
import pathlib
import tempfile

from ..shell import run, say

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
LABEL = "openclaw-lab"
CA_BUNDLE = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")
#: What a test host brings in its npm and pip caches, so that the roles run their real install path in seconds.
OPENCLAW_VERSIONS = ("2026.9.6", "2026.9.5")
NODE_VERSION = "24.19.0"
PLUGIN = ROOT / "roles/gateway/files/shared_state"


def ca_mount():
    """Registries may be reached through a proxy whose certificate only this machine knows: lend its bundle to the hosts."""
    return ["--volume", f"{CA_BUNDLE}:{CA_BUNDLE}:ro"] if CA_BUNDLE.exists() else []


def ensure(suite="bookworm", caches=True, again=False):
    """Build the image of a Debian suite unless the same recipe was built before (or ``again``), and return its name.

    :param caches: with the caches of npm and pip that a gateway's installation wants; without them it takes seconds
    """
    recipe = hashlib.sha256()
    parts = [HERE / "packages.json", HERE / "prepare.sh", HERE / "__init__.py"]
    for path in parts + [PLUGIN / "package-lock.json"] * caches:
        recipe.update(path.read_bytes())
    name = f"openclaw-lab:{suite}-{'' if caches else 'redis-'}{recipe.hexdigest()[:12]}"
    if not again and run("docker", "image", "ls", "--quiet", name):
        return name
    # Scenarios of two checkouts may build at the same time; the second one finds the image.
    with open(pathlib.Path(tempfile.gettempdir()) / f"{LABEL}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if again or not run("docker", "image", "ls", "--quiet", name):
            _build(name, suite, caches, again)
    return name


def _build(name, suite, caches, again):
    base = _base(suite, again)
    say(f"image {name}" + (": filling the npm and pip caches (about a minute)" if caches else ""))
    container = f"openclaw-lab-build-{name.split(':')[1]}"
    run("docker", "rm", "--force", "--volumes", container, check=False)
    environment = {"NODE_EXTRA_CA_CERTS": CA_BUNDLE, "PIP_CERT": CA_BUNDLE} if CA_BUNDLE.exists() else {}
    try:
        run(
            "docker", "run", "--name", container, "--label", LABEL, *ca_mount(),
            *(part for key, value in environment.items() for part in ("--env", f"{key}={value}")),
            "--volume", f"{HERE}:/recipe:ro", "--volume", f"{PLUGIN}:/shared_state:ro",
            base, "sh", "/recipe/prepare.sh", *((NODE_VERSION, *OPENCLAW_VERSIONS) if caches else ()),
        )  # fmt: skip
        run("docker", "commit", "--change", 'CMD ["/sbin/init"]', "--change", f"LABEL {LABEL}=", container, name)
    finally:
        run("docker", "rm", "--force", "--volumes", container, check=False)


def _base(suite, again):
    """The Debian packages alone; a second layer of caches changes more often."""
    packages = json.loads((HERE / "packages.json").read_text())
    name = f"openclaw-lab-base:{suite}-{hashlib.sha256(json.dumps(packages).encode()).hexdigest()[:12]}"
    if not again and run("docker", "image", "ls", "--quiet", name):
        return name
    say(f"image {name}: installing Debian packages (about half a minute)")
    tarball = ROOT / ".lab" / f"{suite}.tar"
    tarball.parent.mkdir(exist_ok=True)
    try:
        run("mmdebstrap", "--variant=minbase", f"--include={','.join(packages)}", suite, tarball)
        run("docker", "import", "--change", f"LABEL {LABEL}=", tarball, name)
    finally:
        tarball.unlink(missing_ok=True)
    return name
