"""Build the image of the Dockerfile with buildah, on a base image made of Debian's packages.

No registry of images is reached. Packages come from this machine's own sources; pip's settings are mounted as build
secrets. Storage is a folder of its own, whose layers make the next build short.
"""

from __future__ import annotations

import configparser
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from ingest_project_tests.deploy.compose_file import ROOT
from ingest_project_tests.services.first_use import cache_folder

TOOLS = {
    "buildah": "buildah",
    "catatonit": "catatonit",
    "ip": "iproute2",
    "mmdebstrap": "mmdebstrap",
    "podman": "podman",
    "runc": "runc",
}
IMAGE = "localhost/ingest_project:0.1.0"
NEXT_IMAGE = "localhost/ingest_project:0.1.1"
BASE_IMAGE = "localhost/python-of-debian:bookworm"
BASE_PACKAGES = "python3,python3-venv,python3-pip,python-is-python3,ca-certificates,usr-is-merged"
# As Debian's own slim images leave them out.
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
FOLDER = Path(os.environ.get("IMAGE_TEST_FOLDER") or cache_folder() / "image")
STORAGE = ("--root", str(FOLDER / "store"), "--runroot", str(FOLDER / "run"), "--storage-driver", "overlay")
REPORTED_PARTS = 25


def bring_tools() -> None:
    """Install Debian's container tools where they are missing."""
    if os.geteuid() != 0:
        sys.exit("make image-test needs root: it mounts file systems and makes namespaces.")
    if missing := sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None} - {""}):
        subprocess.run(["apt-get", "--quiet", "update"], check=True, stdout=subprocess.DEVNULL)
        command = ["apt-get", "--quiet", "install", "--yes", "--no-install-recommends", *missing]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def buildah(*arguments: str) -> str:
    """Run buildah on the storage of these tests; return what it prints."""
    command = ["buildah", *STORAGE, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def build_base() -> None:
    """Make the base image from Debian's packages unless it is there."""
    if BASE_IMAGE in buildah("images", "--format", "{{.Name}}:{{.Tag}}").split():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        archive = f"{folder}/base.tar"
        options = [f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT]
        options += ["--dpkgopt=path-include=/usr/share/doc/*/copyright", '--aptopt=Apt::Install-Recommends "false"']
        sources = [str(path) for path in Path("/etc/apt/sources.list.d").glob("debian*.sources")]
        subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={BASE_PACKAGES}", *options,
             "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", "bookworm", archive, *sources],
            check=True,
        )  # fmt: skip
        container = buildah("from", "scratch")
        buildah("add", "--quiet", container, archive, "/")
        buildah("config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
        buildah("commit", "--quiet", "--rm", container, BASE_IMAGE)


def build(tag: str, context: Path = ROOT) -> float:
    """Build the Dockerfile as it is; return the seconds it took."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "pip.conf"
        settings.write_text(pip_settings(), encoding="utf-8")
        secrets = ["--secret", f"id=pip.conf,src={settings}"]
        if Path(CERTIFICATES).exists():
            secrets += ["--secret", f"id=ca.pem,src={CERTIFICATES}"]
        buildah(
            "bud", "--quiet", "--isolation", "chroot", "--layers", *secrets,
            "--build-arg", f"PYTHON_IMAGE={BASE_IMAGE}", "--tag", tag, str(context),
        )  # fmt: skip
    return time.monotonic() - began


def pip_settings() -> str:
    """Return what pip is told on this machine, in files or variables, as one pip.conf for the build."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    parsed: dict[str, str] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        parsed[name.rpartition(".")[2]] = value.strip("'\"")
    # Folders of this machine are not in the build; the file of certificates is, under another name.
    parsed.pop("find-links", None)
    if Path(CERTIFICATES).exists():
        parsed["cert"] = "/run/secrets/ca.pem"
    config = configparser.RawConfigParser()
    config["global"] = parsed
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        config.write(file)
        file.seek(0)
        return file.read()


def next_version(folder: Path) -> Path:
    """Copy what the image is made of and give it the next version; return the copy."""
    context = folder / "next"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout.split(b"\0")
    for name in filter(None, (name.decode() for name in names)):
        if (ROOT / name).is_file():
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, context / name)
    project = context / "pyproject.toml"
    project.write_text(project.read_text("utf-8").replace('version = "0.1.0"', 'version = "0.1.1"', 1), "utf-8")
    return context


def sizes(folder: Path) -> tuple[int, Counter[str]]:
    """Return the bytes of all files of a mounted image, and those of each of its parts."""
    parts: Counter[str] = Counter()
    packages = next(folder.glob("opt/venv/lib/python3*/site-packages"))
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        inside = path.relative_to(packages if path.is_relative_to(packages) else folder).parts
        name = (
            f"package {inside[0]}" if path.is_relative_to(packages) else "/" + "/".join(inside[: min(2, len(inside))])
        )
        parts[name] += path.stat().st_size
    return sum(parts.values()), parts


def main() -> None:
    """Build two versions, then run the tests in a network of their own."""
    bring_tools()
    build_base()
    with tempfile.TemporaryDirectory() as folder:
        for tag, context in ((IMAGE, ROOT), (NEXT_IMAGE, next_version(Path(folder)))):
            sys.stdout.write(f"{tag} built in {build(tag, context):.0f} s\n")
            sys.stdout.flush()
    tests = [sys.executable, "-m", "pytest", "-n", "0", "-s", "-m", "", str(Path(__file__).with_name("deployed.py"))]
    os.chdir(ROOT)
    os.execvp("unshare", in_network_of_its_own(tests))  # noqa: S606 - it takes this process's place


def in_network_of_its_own(command: list[str]) -> list[str]:
    """Return what runs a command where only the loopback interface is, and the names of the services lead to it.

    Services then listen where the Compose file says and meet nothing else of this machine.
    """
    users = Path("/etc/passwd").read_text(encoding="utf-8")
    # PostgreSQL's programs want a name for their user, which is that of the image that cannot be pulled.
    known = "" if ":x:999:" in users else "postgres-of-compose:x:999:999::/:/usr/sbin/nologin\n"
    files = {
        "hosts": f"127.0.0.1 localhost kafka postgres code-server {socket.gethostname()}\n",
        "passwd": users + known,
    }
    mounts = ["ip link set lo up"]
    for name, text in files.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        mounts.append(f"mount --bind {shlex.quote(str(FOLDER / name))} /etc/{name}")
    return ["unshare", "--net", "--mount", "sh", "-ec", " && ".join([*mounts, 'exec "$@"']), "sh", *command]


if __name__ == "__main__":
    main()
