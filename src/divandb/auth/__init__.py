"""Who is asking, and what they may do: pure rules, no storage and no HTTP.

    policy.py       UserContext, ``_security`` objects, the checks that answer 401 and 403
    passwords.py    verifiers: hashing, checking, the admins' one-line form, one-time tokens
    users.py        documents of ``_users``: hashing on write, validation, who sees them, logging in
    cookies.py      the ``AuthSession`` cookie: made, read, renewed, cleared
    credentials.py  the ``Authorization: Basic`` header, and which ones were found right before
    throttle.py     repeated wrong passwords lock an account for one address

The way of a request with a Basic header: ``credentials.VerifiedCache.get``; when that knows the
header, ``throttle.LoginThrottle.locked`` has the last word. Otherwise ``credentials.parse_basic``,
``throttle.LoginThrottle.begin``, ``users.account``, ``users.authenticate`` (slow on purpose: in a
worker thread), then ``failed`` or ``succeeded`` and ``VerifiedCache.put``.
"""
