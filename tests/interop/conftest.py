"""What the tests with other implementations share: node with its packages, installed once."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INSTALL_TIMEOUT = 300  # seconds: 130 small packages over a slow line


def missing(what: str) -> None:
    """Skip, or fail where a missing node is a failure."""
    if os.environ.get("MODELNET_REQUIRE_JS") == "1":
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def node() -> str:
    """The node program, with the packages of package-lock.json beside peer.mjs."""
    program, npm = shutil.which("node"), shutil.which("npm")
    if program is None or npm is None:
        missing("node and npm are needed (Debian: apt-get install nodejs npm)")
    installed, wanted = HERE / "node_modules" / ".package-lock.json", HERE / "package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < wanted.stat().st_mtime:
        command = [str(npm), "ci", "--ignore-scripts"]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=INSTALL_TIMEOUT)
        if done.returncode:
            missing(f"npm ci failed: {done.stderr.strip()[-300:]}")
        installed.touch()
    return str(program)
