"""The four calls on both scopes, against the contract's sections 1 and 2."""

from conftest import BODY, World


async def test_the_documented_example_comes_back_in_the_documented_shape(world: World) -> None:
    """The account-level CSR of the public API page is answered with its fields, byte for byte."""
    body = {
        **BODY,
        "key_type": "rsa2048",
        "organizational_unit": "Engineering",
        "name": "My Custom CSR",
        "description": "CSR for example.com wildcard",
    }
    answer = await world.http.post(world.a.account_path, json=body, headers=world.a.bearer)
    assert answer.status_code == 201
    result = answer.json()["result"]
    assert body.items() <= result.items()
    assert result["account_tag"] == world.a.account.id.hex
    assert result.keys() == {*body, "id", "created_at", "account_tag", "csr"}
