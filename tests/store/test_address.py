"""An address of a database that asks for TLS, and what is told where that is not to be had."""

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.authority import Authority, key_pem, pem, root, subject

from keystead.errors import KeysteadError, Misconfigured, Unavailable
from keystead.store import schema
from keystead.store.database import Database


class Served:
    """A port that takes up TLS as PostgreSQL does, with a certificate for db.example.com, and then says nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ca = folder, root()
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.ca.sign(key.public_key(), subject("db.example.com"), hosts=["db.example.com"])
        (folder / "pair.pem").write_text(key_pem(key) + pem(certificate))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "pair.pem")
        self.listening = socket.create_server(("127.0.0.1", 0))

    def answer(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.recv(8)
                connection.sendall(b"S")
                with self._context.wrap_socket(connection, server_side=True):
                    pass

    def address(self, mode: str, ca: Authority) -> str:
        (self.folder / "ca.pem").write_text(pem(ca.certificate))
        port = self.listening.getsockname()[1]
        return f"postgresql://u:hidden@127.0.0.1:{port}/x?sslmode={mode}&sslrootcert={self.folder / 'ca.pem'}"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    thread = threading.Thread(target=made.answer)
    thread.start()
    yield made
    # Ends the wait for a connection, as closing alone does not.
    made.listening.shutdown(socket.SHUT_RDWR)
    made.listening.close()
    thread.join()


async def _told(dsn: str) -> KeysteadError:
    with pytest.raises(KeysteadError) as told:
        await schema.state_at(dsn)
    assert "hidden" not in str(told.value)
    return told.value


async def test_a_database_of_another_ca_is_not_reached(served: Served) -> None:
    """Its certificate is what is wrong, and not the address."""
    told = await _told(served.address("verify-full", root("Another CA")))
    assert isinstance(told, Unavailable)
    assert "its certificate is not accepted: unable to get local issuer certificate" in str(told)


async def test_a_certificate_for_another_host_is_not_accepted(served: Served) -> None:
    """With verify-full, where the address says where it was looked for."""
    told = await _told(served.address("verify-full", served.ca))
    assert isinstance(told, Unavailable)
    assert "its certificate is not accepted: IP address mismatch" in str(told)


async def test_a_certificate_that_is_not_accepted_is_no_error_of_a_request(served: Served) -> None:
    """A server that connects anew says that the database is not available, as for any other reason."""
    database = Database(served.address("verify-full", root("Another CA")), 1)
    with pytest.raises(Unavailable):
        await database.fetchrow("SELECT 1")
    await database.close()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("sslmode=bogus", "`sslmode` parameter must be one of: disable, "),
        ("sslmode=verify-full&sslrootcert=/nowhere/ca.pem", "for sslrootcert that cannot be read: .*/nowhere/ca.pem"),
        ("sslmode=require&sslcert=/nowhere/me.pem", "for sslcert that cannot be read: .*/nowhere/me.pem"),
    ],
)
async def test_what_the_address_says_of_tls_is_told(words: str, why: str) -> None:
    """The word or the file that is wrong is named."""
    told = await _told(f"postgresql://u:hidden@127.0.0.1:1/x?{words}")
    assert isinstance(told, Misconfigured)
    assert re.search(why, str(told))
