"""``_session``: who am I, log in, log out."""

from urllib.parse import parse_qs

from starlette.responses import RedirectResponse, Response

from divandb.errors import BadRequest, Unauthorized
from divandb.httpd import respond
from divandb.httpd.call import Call, decode_json

FORM = "application/x-www-form-urlencoded"


async def get(call: Call) -> Response:
    """``GET /_session``: who am I."""
    user = call.user
    info: dict[str, object] = {"authentication_handlers": ["cookie", "default"]}
    if user.handler is not None:
        info["authenticated"] = user.handler
    ctx = {"name": user.name, "roles": list(user.roles)}
    return respond.json({"ok": True, "userCtx": ctx, "info": info})


async def post(call: Call) -> Response:
    """``POST /_session``: log in."""
    form = await _login_form(call)
    name, password, token = form.get("name"), form.get("password"), form.get("token")
    if name is None:
        name = form.get("username")
    if not isinstance(name, str) or not isinstance(password, str):
        raise BadRequest("request body must contain a username and a password")
    authenticator = call.services.authenticator
    try:
        user = await authenticator.log_in(
            name, password, call.address, token if isinstance(token, str) else None
        )
    except Unauthorized as refusal:
        fail = call.query.get("fail")
        if fail is None:
            raise
        return _session_answer(
            call, respond.error(refusal), fail, authenticator.cleared_cookie(secure=call.secure)
        )
    cookie = authenticator.make_cookie(name, secure=call.secure)
    answer = respond.ok(name=user.name, roles=list(user.roles))
    return _session_answer(call, answer, call.query.get("next"), cookie)


async def delete(call: Call) -> Response:
    """``DELETE /_session``: log out."""
    cookie = call.services.authenticator.cleared_cookie(secure=call.secure)
    return _session_answer(call, respond.ok(), call.query.get("next"), cookie)


def _session_answer(
    call: Call, answer: Response, target: str | None, cookie: str | None
) -> Response:
    if target is not None:
        answer = RedirectResponse(call.own_url(target), 302)
    if cookie is not None:
        answer.headers["set-cookie"] = cookie
    return answer


async def _login_form(call: Call) -> dict[str, object]:
    body = await call.body()
    content_type = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "application/json":
        value = decode_json(body)
        if not isinstance(value, dict):
            raise BadRequest("Request body must be a JSON object")
        return value
    if content_type not in (FORM, ""):
        raise BadRequest(f"Content-Type must be application/json or {FORM}")
    try:
        pairs = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=16)
    except ValueError:
        raise BadRequest("The login form is malformed.") from None
    return {key: values[0] for key, values in pairs.items()}


ROUTES = [("/_session", {"GET": get, "POST": post, "DELETE": delete})]
