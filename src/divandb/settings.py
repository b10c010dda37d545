"""The server's settings as ``/_node/_local/_config`` shows them: sections of strings.

Only those that mean something here have defaults; others may be stored, and change nothing. Bounds
that are fixed at the start (``config.Limits``) are not here.
"""

from collections.abc import Mapping

from divandb.errors import NotFound

DEFAULTS: dict[str, dict[str, str]] = {
    "chttpd": {"require_valid_user": "true", "enable_cors": "false"},
    "chttpd_auth": {
        "allow_persistent_cookies": "true",
        "iterations": "600000",
        "pbkdf2_prf": "sha256",
        "same_site": "",
        "timeout": "600",
    },
    "cors": {"credentials": "false", "headers": "", "max_age": "600", "methods": "", "origins": ""},
    "divan": {"write_concern": "local"},
    "vendor": {"name": "DivanDB"},
}
ADMINS = "admins"


class Settings:
    """Defaults under what is stored. Kept in memory on the event loop, refreshed by each commit."""

    def __init__(self, cookie_secret: str = "") -> None:
        """``cookie_secret`` holds until another is stored; empty: there is none."""
        self._stored: dict[str, str] = {}
        self._given = {"chttpd_auth/secret": cookie_secret} if cookie_secret else {}

    def refresh(self, stored: Mapping[str, bytes]) -> None:
        """Take over what the file holds, by ``section/key``."""
        self._stored = self._given | {key: value.decode() for key, value in stored.items()}

    def get(self, section: str, key: str) -> str:
        """The value; raises ``NotFound`` as CouchDB does for an unknown key."""
        value = self._stored.get(f"{section}/{key}", DEFAULTS.get(section, {}).get(key))
        if value is None:
            raise NotFound("unknown_config_value")
        return value

    def find(self, section: str, key: str) -> str:
        """The value, or nothing."""
        return self._stored.get(f"{section}/{key}", DEFAULTS.get(section, {}).get(key, ""))

    def is_on(self, section: str, key: str) -> bool:
        """Is it ``true``?"""
        return self.find(section, key) == "true"

    def number(self, section: str, key: str, low: int, high: int) -> int:
        """The value as a number within bounds; the default when it is not one."""
        text = self.find(section, key)
        good = text.isascii() and text.isdigit() and low <= int(text[:18]) <= high
        return int(text if good else DEFAULTS[section][key])

    def words(self, section: str, key: str) -> frozenset[str]:
        """The value as words between commas."""
        return frozenset(
            word.strip() for word in self.find(section, key).split(",") if word.strip()
        )

    def section(self, name: str) -> dict[str, str]:
        """All values of a section."""
        values = dict(DEFAULTS.get(name, {}))
        for key, value in self._stored.items():
            section, _, rest = key.partition("/")
            if section == name:
                values[rest] = value
        return values

    def sections(self) -> dict[str, dict[str, str]]:
        """Everything."""
        names = {*DEFAULTS, *(key.partition("/")[0] for key in self._stored)}
        return {name: self.section(name) for name in sorted(names)}
