"""What is remembered of logins, and until when."""

import asyncio
from typing import Any

import pytest

from divandb.auth import passwords
from divandb.auth.credentials import basic_header
from divandb.errors import Unauthorized
from divandb.httpd.authenticator import Authenticator
from divandb.settings import Settings
from tests.stores import SeededRng, StillClock

ADDRESS = "10.0.0.1"
HEADER = basic_header("admin", "pw")


class NoUsers:
    """A catalog without `_users`."""

    def find(self, name: str) -> None:
        return None


class Logins:
    """An authenticator that says how much it had to compute."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.settings.refresh({"chttpd_auth/iterations": b"1"})
        self.computed = 0
        nobody: Any = NoUsers()
        self.authenticator = Authenticator(
            nobody, nobody, self.settings, StillClock(), SeededRng(1), self._offload, "admin:pw", 4
        )

    async def _offload(self, function: Any, *arguments: Any) -> Any:
        self.computed += 1
        return function(*arguments)

    def log_in(self, header: bytes = HEADER) -> int:
        """How many computations it took."""
        before = self.computed
        asyncio.run(self.authenticator.identify(header, None, ADDRESS))
        return self.computed - before


@pytest.mark.parametrize(
    "key", ["cors/origins", "chttpd/enable_cors", "divan/write_concern", "x/admins/admin"]
)
def test_a_password_that_was_right_is_remembered_whatever_else_is_set(key: str) -> None:
    logins = Logins()
    assert logins.log_in() > 0
    assert logins.log_in() == 0
    logins.authenticator.settings_changed([key])
    assert logins.log_in() == 0


@pytest.mark.parametrize("key", ["admins/admin", "admins/other", "chttpd_auth/iterations"])
def test_a_setting_that_logins_depend_on_has_it_checked_again(key: str) -> None:
    logins = Logins()
    logins.log_in()
    logins.authenticator.settings_changed(["cors/origins", key])
    assert logins.log_in() > 0


def test_an_admin_that_is_gone_is_no_longer_let_in() -> None:
    logins, header = Logins(), basic_header("eve", "x")
    how = logins.authenticator.password_settings()
    line = passwords.admin_line(passwords.hash_password("x", salt="00" * 16, settings=how))
    logins.settings.refresh({"admins/eve": line.encode()})
    logins.log_in(header)
    assert logins.log_in(header) == 0
    logins.settings.refresh({})
    logins.authenticator.settings_changed(["admins/eve"])
    with pytest.raises(Unauthorized):
        logins.log_in(header)
