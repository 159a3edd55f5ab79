"""CSRs as OpenSSL reads them."""

import subprocess


def run(*command: str, text: str) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
