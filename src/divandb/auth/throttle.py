"""Login throttling: repeated wrong passwords lock one account for one address for a while.

Counts are kept by (account, address), so nobody can lock out an account for others. Accounts that
do not exist count the same. ``failures_max`` wrong passwords within ``window_s`` of the first one
lock for ``lock_s``, in which the right password is refused as well: otherwise the answer to the
right one would still tell it from wrong ones. A login clears the count.

An IPv6 client owns a whole /64 and would never run out of addresses: it counts as one address.

Checking takes long, so many attempts may be under way before the first has failed. At most
``checks_per_account_max`` at once bounds by how many guesses the limit can be exceeded;
``checks_max`` bounds the queue of the worker threads. The table forgets the least recently failed
pair first, so that pushing one out takes failures of ``entries_max`` other pairs.

Times are seconds on the monotonic clock, passed in. One thread (the event loop) uses it.
"""

import hashlib
import ipaddress
from collections import OrderedDict
from functools import lru_cache
from typing import Final

import msgspec

from divandb.errors import Busy, Forbidden

LOCKED: Final = "Account is temporarily locked due to multiple authentication failures"
NAME_CHARS_MAX = 64

_Key = tuple[str, str]


class Settings(msgspec.Struct, frozen=True):
    """Bounds of the throttle; 0 for ``failures_max`` turns locking off."""

    failures_max: int = 5
    window_s: float = 300.0
    lock_s: float = 300.0
    entries_max: int = 10_000
    checks_per_account_max: int = 16
    checks_max: int = 64


class _Count:
    """Failures of one account from one address."""

    __slots__ = ("failures", "first_s", "locked_until_s")

    def __init__(self, first_s: float) -> None:
        self.failures = 0
        self.first_s = first_s
        self.locked_until_s = first_s


class LoginThrottle:
    """``begin`` before a password is checked, then ``failed``, ``succeeded`` or ``dropped``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._counts: OrderedDict[_Key, _Count] = OrderedDict()
        self._checks: dict[_Key, int] = {}
        self._checks_total = 0

    def __len__(self) -> int:
        """How many pairs are being watched."""
        return len(self._counts)

    def locked(self, account: str, address: str, now_s: float) -> bool:
        """Whether ``account`` is locked for ``address``: also to be asked for cached logins."""
        if not self._counts:
            return False
        count = self._counts.get(_key(account, address))
        return count is not None and now_s < count.locked_until_s

    def begin(self, account: str, address: str, now_s: float) -> None:
        """Start checking a password.

        Forbidden while locked; Busy while too many checks are under way. After either nothing has
        begun and nothing is to be ended.
        """
        if self.locked(account, address, now_s):
            raise Forbidden(LOCKED)
        key = _key(account, address)
        checks = self._checks.get(key, 0)
        full = self._checks_total >= self._settings.checks_max
        if full or checks >= self._settings.checks_per_account_max:
            raise Busy("Too many logins are being checked.")
        self._checks[key] = checks + 1
        self._checks_total += 1

    def failed(self, account: str, address: str, now_s: float) -> None:
        """The password was wrong, or there is no such account."""
        key = self._end(account, address)
        if self._settings.failures_max < 1:
            return
        count = self._count(key, now_s)
        count.failures += 1
        if count.failures >= self._settings.failures_max:
            count.locked_until_s = now_s + self._settings.lock_s

    def succeeded(self, account: str, address: str) -> None:
        """The password was right: earlier failures are forgotten."""
        self._counts.pop(self._end(account, address), None)

    def dropped(self, account: str, address: str) -> None:
        """The check came to no end: the client went away, or the account could not be read."""
        self._end(account, address)

    def unlock(self, account: str) -> None:
        """Forget all failures of ``account``: its password was changed."""
        name = _short(account)
        for key in [key for key in self._counts if key[0] == name]:
            del self._counts[key]

    def _end(self, account: str, address: str) -> _Key:
        key = _key(account, address)
        checks = self._checks.pop(key) - 1
        if checks:
            self._checks[key] = checks
        self._checks_total -= 1
        return key

    def _count(self, key: _Key, now_s: float) -> _Count:
        """The pair's count, a new one when the last is over; the most recent of the table."""
        count = self._counts.get(key)
        if count is None or self._is_over(count, now_s):
            count = self._counts[key] = _Count(now_s)
        self._counts.move_to_end(key)
        if len(self._counts) > self._settings.entries_max:
            self._counts.popitem(last=False)
        return count

    def _is_over(self, count: _Count, now_s: float) -> bool:
        lock_over = now_s >= count.locked_until_s
        was_locked = count.failures >= self._settings.failures_max
        return lock_over and (was_locked or now_s >= count.first_s + self._settings.window_s)


def _key(account: str, address: str) -> _Key:
    return _short(account), _network(address)


def _short(account: str) -> str:
    """The account's name, or a digest of one made long to fill memory."""
    if len(account) <= NAME_CHARS_MAX:
        return account
    return hashlib.blake2b(account.encode(), digest_size=32).hexdigest()


@lru_cache(maxsize=1024)
def _network(address: str) -> str:
    """An address, or the /64 of an IPv6 address; IPv4 written as IPv6 is IPv4."""
    if ":" not in address:
        return address
    try:
        ip = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return ip.packed[:8].hex()
