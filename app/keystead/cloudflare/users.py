"""`/user`: the user of the credential."""

from typing import Annotated

import msgspec
from litestar import Controller
from msgspec import Meta

from keystead.cloudflare.context import CallerContext
from keystead.cloudflare.envelope import Envelope, Hex32
from keystead.identity import accounts
from keystead.identity.accounts import User
from keystead.web.handling import get


class UserObject(msgspec.Struct, frozen=True):
    """A user as the SDKs read it; of a person, only the email address is known here."""

    id: Hex32
    email: str
    first_name: None = None
    last_name: None = None
    telephone: None = None
    country: None = None
    zipcode: None = None
    betas: Annotated[tuple[str, ...], Meta(max_length=0)] = ()
    has_pro_zones: bool = False
    has_business_zones: bool = False
    has_enterprise_zones: bool = False
    suspended: bool = False
    two_factor_authentication_enabled: bool = False
    two_factor_authentication_locked: bool = False


class Users(Controller):
    path = "/user"
    tags = ("Users",)

    @get()
    async def get_own(self, context: CallerContext) -> Envelope[UserObject]:
        """Get the user whose token or global key it is."""
        return context.envelope(_object(await accounts.own(context.services.db, context.caller)))


def _object(user: User) -> UserObject:
    return UserObject(user.id.hex, user.email)
