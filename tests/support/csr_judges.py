"""CSRs as OpenSSL reads them."""

import os
import shutil
import subprocess

import pytest


def judge(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed, and with CI=true every judge must be")
        pytest.skip(f"{name} is not installed")
    return path


def run(*command: str, text: str) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
