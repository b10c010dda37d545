"""Who is asking: Basic credentials and session cookies.

A check that costs a password hash runs elsewhere (``offload``), is bounded and throttled, and is
remembered; what is remembered holds as long as the account's document has the revision that was
checked.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Iterable
from typing import Literal

import msgspec
import orjson

from divandb.attachments import Offload
from divandb.auth import cookies, credentials, passwords, throttle, users
from divandb.auth.policy import ANONYMOUS, UserContext
from divandb.catalog import Catalog
from divandb.clock import Clock, Rng
from divandb.errors import Unauthorized
from divandb.replica import DELETED, Replica
from divandb.settings import ADMINS, Settings

ACCOUNTS_MAX = 4096
LOGIN_SECTIONS = frozenset({ADMINS, "chttpd_auth"})
"""Settings that say who may log in, and how."""
_SAME_SITE: dict[str, Literal["", "None", "Lax", "Strict"]] = {
    "none": "None", "lax": "Lax", "strict": "Strict",
}  # fmt: skip


class _Held(msgspec.Struct):
    """An account as it was read; ``rev`` is its document's revision, '' without one."""

    account: users.Account | None
    rev: str
    checked: int


class Authenticator:
    """Tells who sends a request. Lives on the event loop."""

    def __init__(
        self, catalog: Catalog, replica: Replica, settings: Settings, clock: Clock, rng: Rng,
        offload: Offload, fixed_admin: str | None, login_queue_max: int,
    ) -> None:  # fmt: skip
        self._catalog = catalog
        self._replica = replica
        self._settings = settings
        self._clock = clock
        self._offload = offload
        self._fixed_admin = fixed_admin.partition(":") if fixed_admin else None
        self._fixed_verifier: passwords.Verifier | None = None
        self._verified = credentials.VerifiedCache(rng.token(credentials.KEY_BYTES))
        self._throttle = throttle.LoginThrottle(throttle.Settings(checks_max=login_queue_max))
        self._held: dict[str, _Held] = {}
        self._version = 0
        self._checks: dict[bytes, asyncio.Task[UserContext]] = {}

    def users_changed(self) -> None:
        """A commit changed `_users`: accounts are looked at again before they are believed."""
        self._version += 1

    def settings_changed(self, keys: Iterable[str]) -> None:
        """A commit changed these settings, ``section/key``: if logins depend on one of them,
        nothing that was remembered is believed.
        """
        if LOGIN_SECTIONS.isdisjoint(key.partition("/")[0] for key in keys):
            return
        self._version += 1
        self._held.clear()
        self._verified.clear()
        self._fixed_verifier = None

    async def identify(
        self, authorization: bytes | None, cookie: str | None, address: str
    ) -> UserContext:
        """Who sends these; raises ``Unauthorized`` for wrong credentials, ``Forbidden`` while
        locked.
        """
        if authorization is not None:
            quick = self.known_header(authorization, address)
            if quick is not None:
                return quick
            pair = credentials.parse_basic(authorization)
            if pair is not None:
                return await self._login(authorization, *pair, address)
        if cookie:
            login = self.read_cookie(cookie)
            if login is not None:
                return login[0]
        return ANONYMOUS

    def known_header(self, authorization: bytes, address: str) -> UserContext | None:
        """The user of a header that was found right before and still is; ``None`` if it must be
        checked.
        """
        ctx = self._verified.get(authorization)
        if (
            ctx is None
            or ctx.name is None
            or self._throttle.locked(ctx.name, address, self._clock.monotonic())
        ):
            return None
        if not self._is_current(ctx.name):
            self._account(ctx.name)
            return self._verified.get(authorization)
        return ctx

    async def log_in(
        self, name: str, password: str, address: str, token: str | None = None
    ) -> UserContext:
        """Check a login form; raises ``Unauthorized``."""
        if token is not None:
            return await self._check(name, password, address, token)
        return await self._login(credentials.basic_header(name, password), name, password, address)

    async def _login(self, header: bytes, name: str, password: str, address: str) -> UserContext:
        # Many requests may bring the same header before its first check is through: one check
        # serves them all.
        key = header + b"\0" + address.encode()
        check = self._checks.get(key)
        if check is None:
            version = self._verified.generation
            check = asyncio.ensure_future(self._check(name, password, address, None))
            self._checks[key] = check
            check.add_done_callback(lambda _: self._checks.pop(key, None))
            ctx = await asyncio.shield(check)
            self._verified.put(header, ctx, version)
            return ctx
        return await asyncio.shield(check)

    async def _check(
        self, name: str, password: str, address: str, token: str | None
    ) -> UserContext:
        self._throttle.begin(name, address, self._clock.monotonic())
        try:
            if self._is_fixed(name):
                await self._offload(self._fixed)
            account = self._account(name)
            ctx: UserContext = await self._offload(
                lambda: users.authenticate(
                    account,
                    password,
                    settings=self.password_settings(),
                    now_s=self._now_s(),
                    token=token,
                )
            )
        except Unauthorized:
            self._throttle.failed(name, address, self._clock.monotonic())
            raise
        except BaseException:
            self._throttle.dropped(name, address)
            raise
        self._throttle.succeeded(name, address)
        return ctx

    # Accounts

    def _is_current(self, name: str) -> bool:
        held = self._held.get(name)
        return held is not None and held.checked == self._version

    def _account(self, name: str) -> users.Account | None:
        held = self._held.get(name)
        if held is not None and held.checked == self._version:
            return held.account
        known = self._catalog.find(users.USERS_DB)
        winner = self._replica.winner(known, users.ID_PREFIX + name) if known else None
        rev = winner[0] if winner is not None else ""
        if held is not None and held.rev == rev:
            held.checked = self._version
            return held.account
        if held is not None:
            self._verified.forget(name)
            self._throttle.unlock(name)
        account = self._read_account(name)
        if len(self._held) >= ACCOUNTS_MAX:
            oldest = next(iter(self._held))
            del self._held[oldest]
            self._verified.forget(oldest)
        self._held[name] = _Held(account, rev, self._version)
        return account

    def _read_account(self, name: str) -> users.Account | None:
        known = self._catalog.find(users.USERS_DB)
        doc = None
        if known is not None:
            row = self._replica.row(known, users.ID_PREFIX + name)
            shown = row.document.shown()
            if shown and not row.flags & DELETED:
                doc = orjson.loads(row.body)
                if sum(not leaf.deleted for leaf in shown) > 1:
                    doc["_conflicts"] = True
        return users.account(name, self._admin(name), doc)

    def _admin(self, name: str) -> passwords.Verifier | None:
        if self._is_fixed(name):
            return self._fixed()
        line = self._settings.find(ADMINS, name)
        return passwords.parse_admin(line) if line else None

    def _is_fixed(self, name: str) -> bool:
        return self._fixed_admin is not None and self._fixed_admin[0] == name

    def _fixed(self) -> passwords.Verifier:
        # The salt goes into cookies: the same password gives the same one on every node and after a
        # restart.
        assert self._fixed_admin is not None
        if self._fixed_verifier is None:
            name, _, password = self._fixed_admin
            salt = hmac.new(
                self._secret().encode(), f"{name}:{password}".encode(), hashlib.sha256
            ).hexdigest()
            self._fixed_verifier = passwords.hash_password(
                password, salt=salt[:32], settings=self.password_settings()
            )
        return self._fixed_verifier

    def password_settings(self) -> passwords.Settings:
        """How new passwords are hashed."""
        iterations = self._settings.number("chttpd_auth", "iterations", 1, 2_000_000)
        prf = self._settings.find("chttpd_auth", "pbkdf2_prf")
        return passwords.Settings(
            prf=prf if prf in passwords.HASHES else "sha256", iterations=iterations
        )

    # Cookies

    def read_cookie(self, value: str) -> tuple[UserContext, cookies.Login] | None:
        """The user of a session cookie and how long it lasts; ``None`` if it is no longer good."""
        login = cookies.read(
            value, salt_of=self._salt, secrets=(self._secret(),),
            settings=self.cookie_settings(), now_s=self._now_s(),
        )  # fmt: skip
        if login is None:
            return None
        account = self._account(login.name)
        if account is None:
            return None
        return UserContext(account.name, account.roles, "cookie"), login

    def make_cookie(self, name: str, *, secure: bool) -> str | None:
        """A new ``Set-Cookie`` for a user."""
        account = self._account(name)
        if account is None:
            return None
        now_s = self._now_s()
        settings = self.cookie_settings()
        value = cookies.make(
            name, salt=account.salt, secret=self._secret(), settings=settings, now_s=now_s
        )
        return cookies.set_cookie(value, settings=settings, secure=secure, now_s=now_s)

    def renewed_cookie(self, value: str, *, secure: bool) -> str | None:
        """A fresh cookie when this one has been used up by more than a tenth."""
        found = self.read_cookie(value)
        if found is None or not cookies.needs_renewal(found[1], self.cookie_settings()):
            return None
        return self.make_cookie(found[1].name, secure=secure)

    def cleared_cookie(self, *, secure: bool) -> str:
        """The ``Set-Cookie`` that ends a session."""
        return cookies.clear_cookie(settings=self.cookie_settings(), secure=secure)

    def _salt(self, name: str) -> str | None:
        account = self._account(name)
        return account.salt if account is not None else None

    def cookie_settings(self) -> cookies.Settings:
        """How cookies are made."""
        return cookies.Settings(
            timeout_s=self._settings.number("chttpd_auth", "timeout", 1, cookies.TIMEOUT_S_MAX),
            persistent=self._settings.is_on("chttpd_auth", "allow_persistent_cookies"),
            same_site=_SAME_SITE.get(self._settings.find("chttpd_auth", "same_site").lower(), ""),
        )

    def _secret(self) -> str:
        return self._settings.find("chttpd_auth", "secret")

    def _now_s(self) -> int:
        return self._clock.wall_ms() // 1000
