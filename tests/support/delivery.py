"""A site whose certificate is delivered: made and renewed over the API of a live server, signed by a root it trusts."""

import contextlib
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from support.authority import pem
from support.command import Ended, beside, run_command
from support.live import Live
from support.world import BODY

Json = dict[str, Any]


class Site:
    """A CSR with its certificate in the first zone."""

    def __init__(self, live: Live, host: str, **changes: Any) -> None:
        self.live, self.host = live, host
        self.csr: Json = {}
        self.zone_id = live.env["CLOUDFLARE_ZONE_ID"]
        self.issuer = live.ca.intermediate()
        self.new_csr()
        self.text = self.sign(**changes)
        answer = self._ask("POST", "custom_certificates", {"certificate": self.text, "custom_csr_id": self.csr["id"]})
        self.id: str = answer["id"]

    def _ask(self, method: str, tail: str, body: Json | None = None) -> Any:
        url = f"{self.live.url}/client/v4/zones/{self.zone_id}/{tail}"
        answer = httpx.request(method, url, json=body, headers=self.live.bearer, timeout=60)
        assert answer.status_code < 300, answer.text
        return answer.json()["result"]

    def new_csr(self) -> Json:
        made: Json = self._ask("POST", "custom_csrs", {**BODY, "common_name": self.host, "sans": [self.host]})
        self.csr = made
        return made

    def sign(self, **changes: Any) -> str:
        return pem(self.issuer.of_csr(self.csr["csr"], **changes), self.issuer.certificate)

    def renew(self, *, new_key: bool = True, **changes: Any) -> str:
        """Renew it under its id; returns the new chain."""
        if new_key:
            self.new_csr()
        return self.renew_with(self.sign(**changes))

    def renew_with(self, text: str) -> str:
        """Renew it with a chain for the latest CSR."""
        self.text = text
        body = {"certificate": self.text, "custom_csr_id": self.csr["id"]}
        self._ask("PATCH", f"custom_certificates/{self.id}", body)
        return self.text

    def delete(self) -> None:
        self._ask("DELETE", f"custom_certificates/{self.id}")

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificates(self.text.encode())[0]


class Host:
    """A folder with a configuration, a target folder, and what the command made of them."""

    def __init__(self, folder: Path, live: Live) -> None:
        self.folder, self.live = folder, live
        self.config, self.state = folder / "deliver.toml", folder / "state.json"
        self.tls = folder / "tls"
        self.tls.mkdir()
        self.tls.chmod(0o755)
        folder.chmod(0o755)

    def configure(self, *deliveries: str, more: str = "") -> None:
        tables = "".join(f"\n[[deliver]]\n{each}\n" for each in deliveries)
        self.config.write_text(f'state = "{self.state}"\n{more}\n{tables}')
        self.config.chmod(0o644)

    def pair(self, selected: str, more: str = "") -> str:
        """A delivery of the two files of a web server."""
        files = 'files = { fullchain = "fullchain.pem", privkey = "privkey.pem" }'
        return f'name = "www"\nfolder = "{self.tls}"\n{files}\n{selected}\n{more}'

    def deliver(self, *words: str) -> Ended:
        return run_command(beside(self.live), "deliver", "--config", self.config, *(words or ("--once",)))

    def held(self) -> dict[str, str]:
        """What is in the folder; drafts of a delivery that runs may be gone before they are read."""
        found = {}
        for path in self.tls.iterdir():
            with contextlib.suppress(FileNotFoundError):
                found[path.name] = path.read_text()
        return found
