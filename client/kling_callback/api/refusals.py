"""What an answer that is no success proves about a create, and the error that says so: with the answer's own words."""

import html
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from kling_callback.errors import GatewayError
from kling_callback.protocol.reports import Answer
from kling_callback.protocol.values import sanitize

RATE_LIMITED, CONCURRENCY_LIMITED = 1302, 1303
OUTCOME_UNKNOWN_CODES = frozenset({5000, 5001, 5002})
RETRYABLE = frozenset({RATE_LIMITED, CONCURRENCY_LIMITED, *OUTCOME_UNKNOWN_CODES})
REFUSED_CODES = range(1000, 1400)
POLICY_CODES = frozenset({1300, 1301})
"""Codes about a prompt or an image: a query has none, so that they are the reason why its task failed."""
HTTP_CODES = range(300, 600)
"""Codes that relays take from HTTP and send under HTTP 200, too."""
NO_SUCH_PATH = frozenset({404, 405, 501})
HTTP_REFUSED = frozenset(range(300, 500)) - {408, 409, 425, 499}
"""Statuses that prove, without one of Kling's codes, that a create was not taken. After a timeout or 5xx it may be."""

QUOTA_CODES = frozenset(
    {"insufficient_user_quota", "insufficient_quota", "quota_not_enough", "pre_consume_token_quota_failed"}
)
NO_CHANNEL_CODE = "model_not_found"
NOT_KLING = "not_kling"
"""Our code for the answer of an OpenAI endpoint: whatever it did, no task of Kling's came of it."""
NOT_SENT_CODES = QUOTA_CODES | {
    NO_CHANNEL_CODE,
    "access_denied",
    "invalid_api_key",
    "invalid_request",
    "model_price_error",
    "sensitive_words_detected",
}
"""Codes of relays that decide before they send anything to Kling, whatever the HTTP status."""
NO_CHANNEL = re.compile(r"无可用渠道|no available channel", re.IGNORECASE)
"""How a relay says, also without a code, that it found nobody to send a create to."""
QUOTA = re.compile(r"额度|余额|欠费|quota|balance|credit|billing", re.IGNORECASE)

MAX_WORDS = 200
"""Characters of a page or of JSON without a message that an error repeats."""
MAX_PAGE_BYTES = 8_000
NOT_SHOWN = re.compile(r"<!--.*?-->|<(script|style|svg)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
TAG = re.compile(r"<[^>]*>")
QUERY = re.compile(r"(https?://[^\s?\"'<>]+)\?[^\s\"'<>]*")
"""An address with a query, which may give access to a file."""
CHARSET = re.compile(rb"charset=[\"']?([\w.:-]{1,40})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer over HTTP. `answer`: None if it is not a JSON object; `words`: the first ones, without markup.

    `retry_after`: seconds that the server asks to wait. `key`: which of several keys was sent; "" for the only one.
    """

    http_status: int
    answer: Answer | None
    words: str = ""
    is_html: bool = False
    content_type: str = ""
    retry_after: float | None = None
    key: str = ""

    @property
    def code(self) -> int | str | None:
        """Kling's code, or a relay's own."""
        return self.answer.code if self.answer else None

    @property
    def message(self) -> str:
        """The answer's own words."""
        return (self.answer.message if self.answer else "") or self.words

    @property
    def lacks_path(self) -> bool:
        """Whether the server has nothing at the address: it says so, or has a page or an OpenAI endpoint there."""
        if self.http_status in NO_SUCH_PATH or (self.answer is not None and self.answer.is_openai):
            return True
        return self.is_html and self.http_status < 300

    @property
    def status(self) -> int:
        """The HTTP status; that in the code, for a relay that answers every request with 200."""
        under_success = self.http_status < 300 and isinstance(self.code, int) and self.code in HTTP_CODES
        return int(self.code or 0) if under_success else self.http_status

    @property
    def proves_refusal(self) -> bool:
        """Whether it proves that a create was not taken: nothing is generated, nothing is paid."""
        if self.code in REFUSED_CODES:
            return True
        if self.code in OUTCOME_UNKNOWN_CODES:
            return False
        if self.code in NOT_SENT_CODES or (self.status >= 300 and NO_CHANNEL.search(self.message)):
            return True
        return self.status in HTTP_REFUSED


def refusal(kind: type[GatewayError], reply: Reply, base: str) -> GatewayError:
    """The error for an answer of the API at `base`: its code, status and words, and what to do."""
    code, status = reply.code, reply.status
    by_status = code not in NOT_SENT_CODES and (not isinstance(code, int) or code in HTTP_CODES)
    message = " ".join(reply.message.split()) or ("an empty answer" if reply.answer is None else "no message")
    message = "".join(letter if letter.isprintable() else " " for letter in message)  # it is logged, too
    return kind(
        f"Kling answered {'' if code is None else f'{code}, '}HTTP {reply.http_status}: {message.rstrip('.')}.",
        code=NOT_KLING if code is None and reply.answer and reply.answer.is_openai else code,
        http_status=reply.http_status,
        request_id=reply.answer.request_id if reply.answer else None,
        retryable=code in RETRYABLE or (by_status and (status == 429 or status >= 500)),
        retry_after=reply.retry_after,
        hint=_hint(reply, base),
    )


def _hint(reply: Reply, base: str) -> str | None:
    hint = _general_hint(reply, base)
    if reply.key and hint in KEY_HINTS:
        return f"{hint} The key that was sent is {reply.key}; until it is accepted, put the older one before it."
    return hint


def _general_hint(reply: Reply, base: str) -> str | None:
    code, status, message = reply.code, reply.status, reply.message
    if isinstance(code, int) and code in HINTS:
        return HINTS[code]
    if code in QUOTA_CODES or (status in (402, 403) and QUOTA.search(message)):
        return "The relay's quota is used up: top up the account there, or raise its limit."
    better = _better_base(base)
    if code == NO_CHANNEL_CODE or NO_CHANNEL.search(message):
        other = f" Or {better}" if better else ""
        return f"The relay has nobody who makes this model: choose another model_name, or ask the relay.{other}"
    no_job = status in (404, 405) and code not in REFUSED_CODES
    if (reply.answer and reply.answer.is_openai) or (reply.is_html and (no_job or status < 300)):
        return f"This is not Kling's API: {better or 'check KLING_API_BASE.'}"
    if no_job and better:
        return f"There is no job at this path: {better}"
    return HTTP_HINTS.get(status)


def _better_base(base: str) -> str | None:
    """What KLING_API_BASE probably should be, for a relay's host alone, or with `/v1`; None if nothing is known."""
    parts = urlsplit(base)
    path = parts.path.removesuffix("/v1")
    if is_kling(base) or (path and path == parts.path):
        return None
    suggested = f"{parts.scheme}://{parts.netloc}{path or '/kling'}"
    return f"relays have Kling's API under a path of its own, mostly KLING_API_BASE={suggested}"


def is_kling(base: str) -> bool:
    """Whether an address is Kling's own, not a relay's."""
    return (urlsplit(base).hostname or "").endswith(".klingai.com")


WRONG_KEY = "Check KLING_API_KEY, or KLING_ACCESS_KEY and KLING_SECRET_KEY."
WRONG_CLOCK = "Check this machine's clock."
WRONG_PARAMETERS = "Check the parameters of the job: the message names what is wrong."
KLINGS_FAULT = "The fault is at Kling. Queries are repeated; a create may have been taken, and is not sent again."
HINTS = {
    1000: WRONG_KEY,
    1001: WRONG_KEY,
    1002: WRONG_KEY,
    1003: WRONG_CLOCK,
    1004: WRONG_CLOCK,
    1100: "Check the account in Kling's console.",
    1101: "The account is in arrears: top it up.",
    1102: "The resource pack is used up or has expired: buy another.",
    1103: "The account has no right to this model: choose another, or buy it.",
    1200: WRONG_PARAMETERS,
    1201: WRONG_PARAMETERS,
    1202: "Check the path of the job (KLING_API_BASE, family).",
    1203: "Check model_name.",
    1300: "Kling's policy forbids this prompt or image: change it.",
    1301: "Kling's content safety forbids this prompt or image: change it.",
    1302: "Too many requests in a short time: send fewer at once.",
    1303: "As many tasks run as the resource pack allows: wait until one ends, or buy a pack with more.",
    1304: "Put this machine's address on the allow-list in Kling's console.",
    5000: KLINGS_FAULT,
    5001: KLINGS_FAULT,
    5002: KLINGS_FAULT,
}
HTTP_HINTS = {
    **dict.fromkeys(
        (301, 302, 303, 307, 308), "KLING_API_BASE redirects, and the key follows no redirect: correct it."
    ),
    401: "Check that KLING_API_KEY is a key of the gateway at KLING_API_BASE.",
    402: "Top up the account at the relay.",
    403: "Check that KLING_API_KEY is a key of the gateway at KLING_API_BASE.",
    404: "Check KLING_API_BASE and the family: there is no job at this path.",
    405: "Check KLING_API_BASE and the family: there is no job at this path.",
    413: "The request is too large for the gateway: send the image as a URL.",
    429: "The relay allows no more at the moment: try again later.",
}


KEY_HINTS = (WRONG_KEY, HTTP_HINTS[401])
"""The hints about a key that is refused. (403 has the text of 401.)"""


def is_html(content: bytes) -> bool:
    """Whether an answer is a web page."""
    return content[:200].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html", b"<head"))


def first_words(content: bytes, content_type: str = "") -> str:
    """The first words of an answer without a message: a page's text without its markup, or JSON as it is."""
    text = _decode(content[:MAX_PAGE_BYTES], content_type)
    if text.lstrip("\ufeff \t\r\n").startswith("<"):
        text = html.unescape(TAG.sub(" ", NOT_SHOWN.sub(" ", text)))
    text = QUERY.sub(r"\1", " ".join(text.split()))
    return sanitize(text if len(text) <= MAX_WORDS else f"{text[:MAX_WORDS]}…")


def _decode(content: bytes, content_type: str) -> str:
    """The text of a page: pages of proxies in China may be in GBK."""
    named = CHARSET.search(content_type.encode("latin-1", "replace")) or CHARSET.search(content[:2000])
    try:
        return content.decode(named[1].decode() if named else "utf-8", "replace")
    except (LookupError, ValueError):
        return content.decode("utf-8", "replace")
