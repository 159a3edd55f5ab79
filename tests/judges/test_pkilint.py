"""pkilint's linter of the CA/Browser Forum's rules for TLS finds nothing that our CSRs bring into a certificate."""

from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from support.authority import root
from support.world import World

pytestmark = pytest.mark.judges

# What a CA takes over from a CSR: its subject, its key and its SANs. All else that is found is our test CA's doing.
OURS = ("certificate.tbsCertificate.subject", "certificate.tbsCertificate.subjectPublicKeyInfo")
# A common name is "NOT RECOMMENDED" but allowed (Baseline Requirements 7.1.2.7.4), and Cloudflare's API requires one.
ALLOWED = {"cabf.serverauth.ov.common_name_attribute_present"}
CASES: dict[str, dict[str, Any]] = {
    "P-256": {},
    "RSA-2048": {"key_type": "rsa2048"},
    "a wildcard": {"common_name": "*.keystead.dev", "sans": ["*.keystead.dev", "keystead.dev"]},
    "A-labels": {"common_name": "xn--bcher-kva.keystead.dev", "sans": ["xn--bcher-kva.keystead.dev"]},
    "duplicates": {"sans": ["www.keystead.dev", "WWW.keystead.dev", "www.keystead.dev"]},
    "150 names": {"sans": ["www.keystead.dev", *(f"host-{i}.keystead.dev" for i in range(149))]},
    "the longest values": {"state": "s" * 128, "locality": "l" * 128, "organization": "o" * 64},
    "the longest name": {"sans": ["www.keystead.dev", ".".join(["a" * 63] * 3 + ["b" * 48, "keystead.dev"])]},
    "UTF-8": {"organization": "Bäckerei Müller", "locality": "Zürich", "state": "Zürich", "country": "CH"},
    "no country's code": {"country": "XX"},
}


@pytest.fixture(scope="module")
def world(shared_world: World) -> World:
    return shared_world


def findings(leaf: x509.Certificate) -> set[str]:
    """The codes of what is wrong, or not recommended, in the parts that come from the CSR."""
    # Reading these takes a second, and who runs other tests reads this file too.
    from pkilint import finding_filter, loader
    from pkilint.cabf import serverauth
    from pkilint.cabf.serverauth.serverauth_constants import CertificateType
    from pkilint.pkix import certificate as linted

    kind = CertificateType.OV_FINAL_CERTIFICATE
    der = leaf.public_bytes(serialization.Encoding.DER)
    document = loader.RFC5280CertificateDocumentLoader().load_der_document(der, "leaf")
    linter = linted.create_pkix_certificate_validator_container(
        serverauth.create_decoding_validators(), serverauth.create_validators(kind)
    )
    results, _ = finding_filter.filter_results(
        serverauth.create_serverauth_finding_filters(kind), linter.validate(document.root)
    )
    return {
        found.finding.code
        for result in results
        for found in result.finding_descriptions
        if (str(result.node.path).startswith(OURS) or "subjectAltName" in str(result.node.path))
        and found.finding.severity.name not in {"INFO", "DEBUG"}
    }


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
async def test_nothing_is_found_in_what_comes_from_the_csr(world: World, fields: dict[str, Any]) -> None:
    """Subject, key and SANs of a certificate made of our CSR pass as those of an organization-validated one."""
    names: dict[str, Any] = {"common_name": "www.keystead.dev", "sans": ["www.keystead.dev", "keystead.dev"]}
    csr = await world.create(**{**names, **fields})
    assert findings(root().intermediate().of_csr(csr["csr"])) <= ALLOWED


async def test_the_linter_looks_at_these_parts(world: World) -> None:
    """What we advise against is found: a common name that is not among the SANs, and an internal name."""
    changes: list[dict[str, Any]] = [
        {"common_name": "other.keystead.dev"},
        {"sans": ["www.keystead.dev", "db.internal"]},
    ]
    for fields in changes:
        names: dict[str, Any] = {"common_name": "www.keystead.dev", "sans": ["www.keystead.dev"]}
        csr = await world.create(**{**names, **fields})
        assert findings(root().intermediate().of_csr(csr["csr"])) - ALLOWED
