"""Infisical's official Python SDK, unmodified, and the schema of its documented answers for a CA's CSR."""

import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import jsonschema_rs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from support.authority import csr_of, openssl
from support.live import Live
from support.sdk_infisical import REQUIREMENT
from support.tools import missing
from support.world import Tenant, World, make_token

from keystead.identity import tokens

SCRIPT = Path(__file__).parents[1] / "sdk_infisical" / "facts.py"
CACHE = Path(__file__).parents[2] / ".cache"
ANSWERS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "schemas" / "infisical_csr.json").read_text())
UNKNOWN_TOKEN = f"kst_{'x' * 40}"
UNKNOWN_TOKEN += tokens._checksum(UNKNOWN_TOKEN)


@pytest.fixture(scope="module")
def sdk() -> Path:
    """A folder that has the SDK and what it needs, of which pydantic is older than the other tests'."""
    digest = hashlib.sha256(REQUIREMENT.encode()).hexdigest()[:16]
    folder = CACHE / f"sdk_infisical-{digest}-{platform.python_version()}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            words = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", "--upgrade")
            command = (sys.executable, *words, "--target", folder / "packages", REQUIREMENT)
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode != 0:
                missing(f"Infisical's SDK cannot be installed: {(ran.stdout + ran.stderr)[-500:]}")
            (folder / "installed").touch()
    return folder / "packages"


@pytest.fixture(scope="module")
def told(sdk: Path, live: Live) -> Any:
    """What the SDK gave for each fact of the script."""
    verified = httpx.get(f"{live.url}/client/v4/user/tokens/verify", headers=live.bearer)
    variables = {
        "INFISICAL_HOST": live.url,
        "INFISICAL_CLIENT_ID": verified.json()["result"]["id"],
        "INFISICAL_CLIENT_SECRET": live.env["CLOUDFLARE_API_TOKEN"],
        "INFISICAL_PROJECT_SLUG": live.env["KEYSTEAD_PROJECT_SLUG"],
        "LEAF_CSR": csr_of(ec.generate_private_key(ec.SECP256R1()), "www.example.com"),
        "UNKNOWN_TOKEN": UNKNOWN_TOKEN,
    }
    ran = subprocess.run(
        # Without the packages of this process's own environment.
        [sys.executable, "-S", SCRIPT],
        env={**os.environ, **variables, "PYTHONPATH": str(sdk)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture
def fact(told: Any) -> Callable[[str], Any]:
    """What the SDK gave for one fact."""

    def find(name: str) -> Any:
        found = told[name]
        assert not isinstance(found, dict) or "thrown" not in found, found["thrown"]
        return found

    return find


def refusal(told: Any) -> tuple[str, int, str, Any]:
    """The SDK's exception and the body that it carries, whose id and status are those of the answer."""
    body = told["body"]
    assert (body["reqId"], body["statusCode"]) == (told["request_id"], told["status"])
    return told["kind"], told["status"], body["error"], body["message"]


def verified(folder: Path, certificate: str, root: str, between: str = "") -> str:
    """What `openssl verify` says of a certificate; `between` are the CAs between it and the root."""
    for name, text in (("leaf", certificate), ("root", root), ("between", f"{between}\n{root}")):
        (folder / name).write_text(f"{text}\n")
    words = ("verify", "-x509_strict", "-CAfile", folder / "root", "-untrusted", folder / "between", folder / "leaf")
    return openssl(*words).removeprefix(f"{folder / 'leaf'}: ").strip()


def said_of_csr(csr: str) -> str:
    """What `openssl req -verify` says of a CSR; some versions exit with 0 even if they find its signature bad."""
    command = ["openssl", "req", "-verify", "-noout"]
    done = subprocess.run(command, input=csr, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout + done.stderr


def pems(text: str) -> list[str]:
    """The certificates of a chain, one by one."""
    end = "-----END CERTIFICATE-----"
    return [f"{part.strip()}\n{end}" for part in text.split(end) if part.strip()]


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_login_gives_a_token_of_two_hours(fact: Callable[[str], Any]) -> None:
    """The id and value of an API token are a client id and secret, and what they give is another token."""
    assert fact("login") == {"accessToken": True, "expiresIn": 7200, "accessTokenMaxTTL": 7200, "tokenType": "Bearer"}


def test_the_api_token_is_a_bearer_itself(fact: Callable[[str], Any]) -> None:
    """Somebody who has an API token of ours need not log in."""
    assert fact("token_itself")["csr"].startswith("-----BEGIN CERTIFICATE REQUEST-----\n")


@pytest.mark.parametrize("name", ["create_root", "create_intermediate"])
def test_create_gives_back_what_was_sent(fact: Callable[[str], Any], name: str) -> None:
    """Every field of the typed answer to a create equals what the call had, for both types of CA."""
    told = fact(name)
    assert told["sent"].items() <= told["made"].items()


def test_a_ca_names_its_project(fact: Callable[[str], Any], live: Live) -> None:
    """`projectId` is the account whose slug the call had."""
    made = fact("create_root")["made"]
    assert UUID(made["projectId"]) == UUID(live.env["CLOUDFLARE_ACCOUNT_ID"])


def test_a_root_is_active_for_ten_years(fact: Callable[[str], Any]) -> None:
    """A root has signed itself when it is there, and is valid from now for ten years."""
    made = fact("create_root")["made"]
    assert (made["status"], made["parentCaId"]) == ("active", None)
    ten_years = instant(made["notAfter"]) - datetime.now(UTC)
    assert timedelta(days=3649) < ten_years < timedelta(days=3654)


def test_an_intermediate_waits_for_its_certificate(fact: Callable[[str], Any]) -> None:
    """A new intermediate has no parent, no serial number and no dates, and the SDK reads that as None."""
    made = fact("create_intermediate")["made"]
    assert made["status"] == "pending-certificate"
    assert {made[name] for name in ("parentCaId", "serialNumber", "notBefore", "notAfter")} == {None}


def test_the_defaults_of_the_sdk_are_taken(fact: Callable[[str], Any]) -> None:
    """A create with the SDK's own defaults makes a key of RSA_2048 and no bound on the path."""
    made = fact("create_without_options")
    assert (made["keyAlgorithm"], made["maxPathLength"]) == ("RSA_2048", -1)


def test_times_of_a_ca_have_their_zone(fact: Callable[[str], Any]) -> None:
    """The SDK reads createdAt and updatedAt as aware times, and they are now."""
    made = fact("create_root")["made"]
    for name in ("createdAt", "updatedAt"):
        assert abs(datetime.now(UTC) - instant(made[name])) < timedelta(minutes=5)


def test_get_gives_what_create_gave(fact: Callable[[str], Any]) -> None:
    """A CA that is read has the same fields as when it was made, for both types of CA."""
    for made, found in fact("get"):
        assert found == made


def test_the_csr_is_for_the_name_of_the_ca(fact: Callable[[str], Any]) -> None:
    """The CSR that the SDK gets is signed rightly and has the subject that the CA was made with."""
    request = x509.load_pem_x509_csr(fact("csr")["csr"].encode())
    assert request.is_signature_valid
    values = ["US", "Example, Inc.", "PKI", "California", "Example CA", "San Francisco"]
    assert [attribute.value for attribute in request.subject] == values


def test_a_signed_intermediate_verifies(fact: Callable[[str], Any], tmp_path: Path) -> None:
    """What a root signs of an intermediate's CSR is valid under the root, which is its issuer and its whole chain."""
    told = fact("sign_intermediate")
    root, signed = told["root"], told["signed"]
    assert signed["issuingCaCertificate"] == signed["certificateChain"] == root
    assert verified(tmp_path, signed["certificate"], root) == "OK"


def test_an_imported_certificate_makes_a_ca_active(fact: Callable[[str], Any]) -> None:
    """After the import the CA is active below its parent, with the certificate's serial number and dates."""
    told = fact("import_certificate")
    assert told["told"] == {"message": "Successfully imported certificate to CA", "caId": told["ca_id"]}
    found = told["after"]
    assert (found["status"], found["parentCaId"]) == ("active", told["root_id"])
    assert found["serialNumber"] == told["serial"]
    assert instant(found["notBefore"]) <= datetime.now(UTC)
    assert instant(found["notAfter"]) == datetime(2035, 6, 12, tzinfo=UTC)


def test_the_certificate_of_a_ca_is_the_one_it_imported(fact: Callable[[str], Any]) -> None:
    """An intermediate's certificate, chain and serial number are those that its parent gave."""
    told = fact("certificate")
    assert told["of_intermediate"].items() <= told["signed"].items()


def test_the_chain_of_a_root_is_empty(fact: Callable[[str], Any]) -> None:
    """A root has a certificate and an empty string above it."""
    told = fact("certificate")
    assert told["of_root"]["certificate"] == told["signed"]["issuingCaCertificate"]
    assert told["of_root"]["certificateChain"] == ""


def test_a_crl_is_signed_by_its_ca(fact: Callable[[str], Any]) -> None:
    """The CRL of a root that revoked nothing is empty and carries the root's signature."""
    told = fact("crl")
    crl = x509.load_pem_x509_crl(told["told"]["crl"].encode())
    key = x509.load_pem_x509_certificate(told["root"].encode()).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert crl.is_signature_valid(key)
    assert len(crl) == 0


def test_a_signed_leaf_verifies(fact: Callable[[str], Any], tmp_path: Path) -> None:
    """A certificate for a CSR from elsewhere is valid up to the root, which is the last of its chain."""
    signed = fact("sign_certificate")["signed"]
    chain = pems(signed["certificateChain"])
    assert chain[0] == signed["issuingCaCertificate"]
    assert len(chain) == 2
    assert verified(tmp_path, signed["certificate"], root=chain[-1], between=chain[0]) == "OK"


def test_a_signed_leaf_has_the_key_and_names_of_its_csr(fact: Callable[[str], Any]) -> None:
    """Subject, public key and names come from the CSR, and the dates from the ttl."""
    told = fact("sign_certificate")
    request = x509.load_pem_x509_csr(told["csr"].encode())
    leaf = x509.load_pem_x509_certificate(told["signed"]["certificate"].encode())
    assert leaf.public_key() == request.public_key()
    assert leaf.subject.public_bytes() == request.subject.public_bytes()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["www.example.com"]
    assert abs(leaf.not_valid_after_utc - datetime.now(UTC) - timedelta(days=90)) < timedelta(minutes=10)


def test_the_serial_number_is_the_certificates_own(fact: Callable[[str], Any]) -> None:
    """`serialNumber` is the certificate's serial number in 40 hex digits."""
    signed = fact("sign_certificate")["signed"]
    leaf = x509.load_pem_x509_certificate(signed["certificate"].encode())
    assert signed["serialNumber"] == f"{leaf.serial_number:040x}"


def test_a_key_is_not_handed_out_to_everybody(fact: Callable[[str], Any]) -> None:
    """The first token may not have keys made for it: ForbiddenException, with what it may not do."""
    told = fact("issue_certificate")
    kind, status, error, _ = refusal(told)
    assert (kind, status, error) == ("ForbiddenException", 403, "PermissionDenied")
    assert [detail["subject"] for detail in told["body"]["details"]] == ["certificate-authorities"]


def test_a_ca_is_disabled_and_made_active_again(fact: Callable[[str], Any]) -> None:
    """A patch of the status gives the CA with that status."""
    assert fact("patch") == ["disabled", "active"]


def test_a_certificate_is_found_by_its_serial_number(fact: Callable[[str], Any]) -> None:
    """What the CA noted of a certificate is what the certificate says."""
    told = fact("issued")
    found, leaf = told["found"], x509.load_pem_x509_certificate(told["signed"]["certificate"].encode())
    assert (found["caId"], found["serialNumber"]) == (told["ca_id"], told["signed"]["serialNumber"])
    assert (found["status"], found["revokedAt"], found["revocationReason"]) == ("active", None, None)
    assert (found["commonName"], found["altNames"]) == ("www.example.com", "www.example.com")
    assert instant(found["notBefore"]) == leaf.not_valid_before_utc
    assert instant(found["notAfter"]) == leaf.not_valid_after_utc


def test_a_certificate_can_be_had_again(fact: Callable[[str], Any]) -> None:
    """Certificate, chain and serial number are had again, as they were when it was signed."""
    told = fact("issued")
    assert told["body"].items() <= told["signed"].items()


def test_revoke_says_when(fact: Callable[[str], Any]) -> None:
    """Revoke answers with the serial number and the time, which the certificate has from then on."""
    told = fact("revoke")
    assert told["told"]["serialNumber"] == told["serial"]
    assert abs(datetime.now(UTC) - instant(told["told"]["revokedAt"])) < timedelta(minutes=5)
    assert told["after"]["revokedAt"] == told["told"]["revokedAt"]
    # RFC 5280 section 5.3.1: keyCompromise is 1.
    assert (told["after"]["status"], told["after"]["revocationReason"]) == ("revoked", 1)


def test_a_revoked_certificate_is_on_the_crl(fact: Callable[[str], Any]) -> None:
    """The CA's next CRL has the serial number and the reason."""
    told = fact("revoke")
    crl = x509.load_pem_x509_crl(told["crl"].encode())
    entry = crl.get_revoked_certificate_by_serial_number(int(told["serial"], 16))
    assert entry is not None
    assert entry.extensions.get_extension_for_class(x509.CRLReason).value.reason is x509.ReasonFlags.key_compromise


def test_delete_gives_the_deleted_and_it_is_gone(fact: Callable[[str], Any]) -> None:
    """Delete answers with the CA, and a get of it afterwards is NotFoundException."""
    told = fact("delete")
    assert told["deleted"]["id"] == told["made"]["id"]
    text = f"CA with ID '{told['made']['id']}' not found"
    assert refusal(told["after"]) == ("NotFoundException", 404, "NotFound", text)


def test_a_root_has_no_csr(fact: Callable[[str], Any]) -> None:
    """The CSR of a root is BadRequestException."""
    told = refusal(fact("bad_request"))
    assert told == ("BadRequestException", 400, "BadRequest", "Root CA cannot generate CSR")


def test_a_call_without_a_header_is_unauthorized(fact: Callable[[str], Any]) -> None:
    """The SDK sends no Authorization for a CA by itself, even after its login: UnauthorizedException."""
    assert refusal(fact("no_token")) == ("UnauthorizedException", 401, "UnauthorizedError", "Token missing")


def test_an_unknown_token_is_unauthorized(fact: Callable[[str], Any]) -> None:
    """A token of the right form that nobody made is UnauthorizedException."""
    text = "You are not allowed to access this resource"
    assert refusal(fact("unknown_token")) == ("UnauthorizedException", 401, "UnauthorizedError", text)


def test_a_login_with_a_wrong_secret_is_unauthorized(fact: Callable[[str], Any]) -> None:
    """The id of a token with another value than its own is UnauthorizedException."""
    told = refusal(fact("wrong_secret"))
    assert told == ("UnauthorizedException", 401, "UnauthorizedError", "Invalid credentials")


def test_a_malformed_token_is_forbidden(fact: Callable[[str], Any]) -> None:
    """What cannot be a token of ours is ForbiddenException, in Infisical's words."""
    text = "The provided access token is malformed. Please use a valid token or generate a new one and try again."
    assert refusal(fact("malformed_token")) == ("ForbiddenException", 403, "TokenError", text)


def test_a_missing_ca_is_not_found(fact: Callable[[str], Any]) -> None:
    """An id that no CA has is NotFoundException."""
    told = fact("not_found")
    assert refusal(told) == ("NotFoundException", 404, "NotFound", f"CA with ID '{told['id']}' not found")


def test_wrong_fields_are_a_list_of_issues(fact: Callable[[str], Any]) -> None:
    """A CA without a name is 422, for which the SDK has no class of its own, with an issue for each wrong field."""
    kind, status, error, issues = refusal(fact("unprocessable"))
    assert (kind, status, error) == ("ApiException", 422, "ValidationFailure")
    assert isinstance(issues, list)
    assert issues
    assert all({"code", "path", "message"} <= issue.keys() for issue in issues)


async def ca_of(world: World, tenant: Tenant, **fields: str) -> str:
    """A new CA over the API, an intermediate with a key on P-256 unless told otherwise; returns its id."""
    basics = {"type": "intermediate", "commonName": "Example CA", "keyAlgorithm": "EC_prime256v1"}
    body = {"projectSlug": tenant.account.slug, **basics, **fields}
    answer = await world.http.post("/api/v1/pki/ca", json=body, headers=tenant.bearer)
    assert answer.status_code == 200, answer.text
    made: str = answer.json()["ca"]["id"]
    return made


async def asked(world: World, path: str, token: str | None = None) -> httpx.Response:
    """An answer to GET of this path with this token, or else the first tenant's, held to the documented schema."""
    headers = world.a.bearer if token is None else {"Authorization": f"Bearer {token}"} if token else {}
    answer = await world.http.get(path, headers=headers)
    schema = ANSWERS[str(answer.status_code)]
    jsonschema_rs.meta.validate(schema)
    jsonschema_rs.Draft202012Validator(schema).validate(answer.json())
    return answer


@pytest.mark.parametrize("prefix", ["/api/v1/pki/ca", "/api/v1/cert-manager/ca/internal"])
async def test_the_csr_has_its_documented_form(world: World, prefix: str) -> None:
    """The answer is an object of a csr alone, which is PEM without a newline at its end."""
    answer = await asked(world, f"{prefix}/{await ca_of(world, world.a)}/csr")
    csr = answer.json()["csr"]
    assert answer.status_code == 200
    assert csr.startswith("-----BEGIN CERTIFICATE REQUEST-----\n")
    assert csr.endswith("\n-----END CERTIFICATE REQUEST-----")


async def test_who_may_write_cas_may_have_their_csr(world: World) -> None:
    """The group Private CA Write is enough."""
    token = await make_token(world.services, world.a.account, groups=("Private CA Write",))
    answer = await asked(world, f"/api/v1/pki/ca/{await ca_of(world, world.a)}/csr", token)
    assert answer.status_code == 200


async def test_400_has_its_documented_form(world: World) -> None:
    """The CSR of a root is refused as documented."""
    answer = await asked(world, f"/api/v1/pki/ca/{await ca_of(world, world.a, type='root')}/csr")
    assert (answer.status_code, answer.json()["message"]) == (400, "Root CA cannot generate CSR")


@pytest.mark.parametrize("token", ["", UNKNOWN_TOKEN], ids=["none", "unknown"])
async def test_401_has_its_documented_form(world: World, token: str) -> None:
    """No token and an unknown one are refused as documented."""
    answer = await asked(world, f"/api/v1/pki/ca/{await ca_of(world, world.a)}/csr", token)
    assert (answer.status_code, answer.json()["error"]) == (401, "UnauthorizedError")


async def test_403_of_a_malformed_token_has_its_documented_form(world: World) -> None:
    """What cannot be a token is refused as documented."""
    answer = await asked(world, f"/api/v1/pki/ca/{await ca_of(world, world.a)}/csr", "x")
    assert (answer.status_code, answer.json()["error"]) == (403, "TokenError")


async def test_403_of_a_caller_without_permission_has_its_documented_form(world: World) -> None:
    """Who may only read CAs is refused as documented, with what was not permitted."""
    token = await make_token(world.services, world.a.account, groups=("Private CA Read",))
    answer = await asked(world, f"/api/v1/pki/ca/{await ca_of(world, world.a)}/csr", token)
    assert (answer.status_code, answer.json()["error"]) == (403, "PermissionDenied")
    assert answer.json()["message"] == "You are not allowed to create on certificate-authorities"
    assert answer.json()["details"]


@pytest.mark.parametrize("ca_id", [str(uuid4()), "my-ca"], ids=["unknown", "no_uuid"])
async def test_404_has_its_documented_form(world: World, ca_id: str) -> None:
    """An id that no CA has, a UUID or not, is refused as documented."""
    answer = await asked(world, f"/api/v1/pki/ca/{ca_id}/csr")
    assert (answer.status_code, answer.json()["error"]) == (404, "NotFound")
    assert answer.json()["message"] == f"CA with ID '{ca_id}' not found"


async def test_a_ca_of_another_account_is_one_that_is_not_there(world: World) -> None:
    """The CA of another tenant is 404 in the words for an unknown id."""
    ca_id = await ca_of(world, world.b)
    answer = await asked(world, f"/api/v1/pki/ca/{ca_id}/csr")
    assert (answer.status_code, answer.json()["message"]) == (404, f"CA with ID '{ca_id}' not found")


@pytest.mark.parametrize("algorithm", ["EC_prime256v1", "RSA_2048"])
async def test_openssl_verifies_the_csr(world: World, algorithm: str) -> None:
    """OpenSSL takes the CSR as it is in the answer and finds its signature good."""
    answer = await asked(world, f"/api/v1/pki/ca/{await ca_of(world, world.a, keyAlgorithm=algorithm)}/csr")
    assert "verify OK" in said_of_csr(answer.json()["csr"])


async def test_every_csr_of_an_ec_ca_is_signed_afresh(world: World) -> None:
    """Two calls give two signatures of one request, since ECDSA's are random."""
    path = f"/api/v1/pki/ca/{await ca_of(world, world.a)}/csr"
    first, second = [x509.load_pem_x509_csr((await asked(world, path)).json()["csr"].encode()) for _ in range(2)]
    assert first.signature != second.signature
    assert first.tbs_certrequest_bytes == second.tbs_certrequest_bytes


async def test_every_csr_of_an_rsa_ca_is_the_same(world: World) -> None:
    """Two calls give the same bytes, since RSA's PKCS #1 signatures are not random."""
    path = f"/api/v1/pki/ca/{await ca_of(world, world.a, keyAlgorithm='RSA_2048')}/csr"
    first, second = [(await asked(world, path)).json()["csr"] for _ in range(2)]
    assert first == second
