"""Looking for secrets in memory, files and output, in any encoding."""

import base64
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import msgspec
from cryptography.hazmat.primitives.asymmetric import rsa

from keystead.x509 import keys

# A process as an ordinary user's: without root's permission to look into any other.
ORDINARY = ("setpriv", "--bounding-set=-sys_ptrace") if os.geteuid() == 0 else ()


def looks_into(pid: int) -> str:
    """What an ordinary process of the same user gets when it opens the memory of another."""
    program = f"open('/proc/{pid}/mem', 'rb'); print('it can be read')"
    done = subprocess.run([*ORDINARY, sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip().splitlines()[-1]


@contextlib.contextmanager
def waiting(program: str, *words: object) -> Iterator[int]:
    """A Python process that does something and then waits."""
    command = [*ORDINARY, sys.executable, "-c", program, *map(str, words)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        assert process.stdout.readline()
        yield process.pid
    finally:
        process.communicate()


class Secret(msgspec.Struct):
    """Something that must not be found; `owners` are the places that have it by design."""

    name: str
    value: bytes
    owners: tuple[str, ...] = ()

    @property
    def forms(self) -> list[bytes]:
        """How it would look: raw, in hex, in Python's escapes, and in base64 of any alignment."""
        value = self.value
        whole = [value[i : i + (len(value) - i) // 3 * 3] for i in range(3)]
        encoded = [base64.b64encode(part) for part in whole]
        # With both kinds of quotes in a text, Python escapes one of them.
        escaped = [repr(value)[2:-1].encode(), repr(b"'\"" + value)[5:-1].encode()]
        plain = [value, value.hex().encode(), value.hex().upper().encode(), *escaped]
        return [*plain, *encoded, *(base64.urlsafe_b64encode(part) for part in whole)]


def of_key(name: str, key: keys.PrivateKey) -> list[Secret]:
    """The secret numbers of a key: every encoding of it has them, in PEM and in DER."""
    numbers = key.private_numbers()
    found = (
        [numbers.d, numbers.p, numbers.q, numbers.dmp1, numbers.dmq1, numbers.iqmp]
        if isinstance(numbers, rsa.RSAPrivateNumbers)
        else [numbers.private_value]
    )
    parts = [number.to_bytes((number.bit_length() + 7) // 8, "big") for number in found]
    return [
        *(Secret(name, part[:24]) for part in parts),
        *(Secret(f"{name} in decimal", str(number).encode()) for number in found),
    ]


def leaks(secrets: list[Secret], places: dict[str, bytes]) -> list[str]:
    """Where each secret is that should not be there; line breaks in the middle hide nothing."""
    found = []
    for place, content in places.items():
        # PEM in JSON has its line breaks as two characters, or as four where JSON stands in JSON.
        flat = re.sub(rb"\\+[nr]|\s", b"", content)
        found += [
            f"{secret.name} in {place}"
            for secret in secrets
            if place not in secret.owners and any(form in content or form in flat for form in secret.forms)
        ]
    return found
