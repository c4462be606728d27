"""Forms in which secrets stand in text: after a name, in an address, a header, a command line; and well-known shapes.

The shapes are the rules of gitleaks in `tokens.tsv`, and a few looser ones for tokens that have been cut or made up.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from dpo_jax.masking.names import is_secret, is_secret_parameter

MARK = "***"

_NAMED = (  # a name and what stands between it and its value
    re.compile(r"(?<![\w-])(?P<name>--?[A-Za-z][\w.-]*+)[\"']?,?[ \t]+(?!-)"),
    re.compile(r"(?<![\w.-])(?P<name>[\w.-]++)\\{0,3}[\"'`]?\]?[ \t]{0,9}(?::=|=>|==|[:=])[ \t]*"),
)
_VALUE = re.compile(
    r"(?P<quote>\\{0,3}[\"'`])(?P<quoted>.*?)(?=(?P=quote)|$)|[^\s\"'`,;&)}\]\\]+(?:,[^\s\"'`,;&)}\]\\]+)*",
    re.MULTILINE,
)
_NOTHING = re.compile(  # behind such a name, and yet no secret: a type, a reference, a piece of code, a word of prose
    r"(?i:none|null|true|false|~|str|int|bool|bytes|any|object|float|empty|required|missing|invalid|wrong|needed|unset|)"
    r"\W*|\*+|\.+|[$%]?\{.*|\$\w+|%\w+%?|<.*>?|[A-Za-z_][\w.]*[(\[].*|(?:os|self|args|config)\.[\w.]+|str\|.*"
)
_PROSE = re.compile(r"[A-Za-z][a-z'-]{0,15}[.!?:]?|\d{1,7}\.?")
_PLAIN_WORDS = {
    "token",
    "secret",
    "secrets",
    "credential",
    "credentials",
    "cookie",
    "authorization",
    "password",
    "webhook",
}

_HEADER = re.compile(
    r"(?i)(?P<before>\b(?:(?:proxy-)?authorization|(?:set-)?cookie2?)\\{0,3}[\"']?[ \t]{0,9}[:=][ \t]{0,9}"
    r"\\{0,3}(?P<quote>[\"']?)[ \t]*)(?P<scheme>[\w-]{2,20}[ \t]+)?(?P<value>[^\r\n]+)"
)
_SCHEMES = ("basic", "bearer", "token", "negotiate", "apikey", "ntlm")
_WHOLE_LINE = ("cookie", "digest", "aws4-hmac-sha256", "hoba", "oauth")

# `Path` robs an address of a slash
_ADDRESS = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]{1,20}:/{1,3}(?=(?P<rest>[^\s'\"<>]{1,2000}))")
_NO_PASSWORD = re.compile(r"(?:git|hg|svn|ssh|root|anonymous)", re.IGNORECASE)
_PARAMETER = re.compile(r"(?P<start>[?&;#])(?P<name>[\w.%-]++)=(?P<value>[^&\s'\"#;]+)")
_HOOKS = (
    r"hooks?\.slack\.com", r"discord(?:app)?\.com/api/(?:v\d+/)?webhooks", r"webhook\.office\.com",
    r"logic\.azure\.com", r"powerplatform\.com", r"hooks\.zapier\.com", r"hook\.[\w.]*make\.com",
    r"chat\.googleapis\.com", r"maker\.ifttt\.com", r"outlook\.office(?:365)?\.com/webhook", r"webhook\.site",
    r"oapi\.dingtalk\.com", r"open\.feishu\.cn", r"[\w.-]+/hooks",
)  # fmt: skip
_HOOK = re.compile(rf"(?i)(\bhttps?:/{{1,2}}[^\s/'\"]*(?:{'|'.join(_HOOKS)}))/[^\s'\"]+")
_PRIVATE_KEY = re.compile(
    r"-----BEGIN[A-Z0-9 _-]{0,60}PRIVATE KEY[A-Z ]{0,10}-----[\s\S]*?(?:-----END[A-Z0-9 _-]{0,60}-----|\Z)"
)
_PROGRAMS = (  # a program, and the flag behind which it wants a secret
    r"\bcurl\b[^\r\n|]{0,400}?[ \t'\"](?:-u|--user|-U|--proxy-user)[ \t=]*[\"']?[^\s:\"']*:",
    r"\bcurl\b[^\r\n|]{0,400}?[ \t](?:-b|--cookie)[ \t=]*[\"']?",
    r"\bhttps?\b[ \t][^\r\n|]{0,400}?(?:-a|--auth)[ \t=]*[\"']?[^\s:\"']*:",
    r"\b(?:mysql|mysqldump|mysqladmin|mariadb)\b[^\r\n|]{0,400}?[ \t]-p(?=\S)",
    r"\bsshpass[ \t]+-p[ \t]*",
    r"\bredis-cli\b[^\r\n|]{0,400}?[ \t]-a[ \t]+",
    r"\b(?:docker|podman|helm|az|oc)\b[^\r\n|]{0,400}?\blogin\b[^\r\n|]{0,400}?[ \t]-p[ \t]*",
    r"\bwandb[ \t]+login[ \t]+(?:--\w+[ \t]+)*(?!-)",
    r"\bpass(?:in|out)?[ \t]+pass:",
    r"\bmachine[ \t]+\S+\s+login[ \t]+\S+\s+password[ \t]+",
)
_PROGRAM = [re.compile(rf"({pattern})[^\s\"']+") for pattern in _PROGRAMS]
_BEARER = re.compile(r"(?i)\b(bearer[ \t]+)([\w.~+/=-]{8,})")
_BASIC = re.compile(r"(?i)\b(basic[ \t]+)([A-Za-z0-9+/_-]{6,}={0,2})")
_STARTS = (  # the starts of tokens, each with what follows; the rules of gitleaks want them whole
    r"hf_[A-Za-z0-9]{16,}", r"api_org_[A-Za-z0-9]{16,}",
    r"sk-(?:proj|ant|or|svcacct|admin|lf)-[\w-]{12,}", r"sk-[A-Za-z0-9]{16,}",
    r"gh[pousr]_\w{16,}", r"github_pat_\w{16,}", r"gl(?:pat|dt|rt|ptt|cbt|soat|agent|oas|ft|imt|ffct)-[\w.-]{16,}",
    r"xox[a-z]-[\w-]{10,}", r"xapp-[\w-]{10,}", r"xoxe\.[\w-]{10,}", r"npm_[A-Za-z0-9]{16,}", r"pypi-AgE[\w-]{10,}",
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{12,}", r"AIza[\w-]{16,}", r"ya29\.[\w-]{10,}", r"GOCSPX-[\w-]{10,}",
    r"gsk_[A-Za-z0-9]{16,}", r"r8_[A-Za-z0-9]{16,}", r"nvapi-[\w-]{16,}",
    r"xai-[A-Za-z0-9]{16,}", r"pplx-[A-Za-z0-9]{16,}",
    r"tgp_v1_[\w-]{16,}", r"wandb_v1_[\w-]{16,}", r"[sr]k_(?:live|test)_\w{10,}", r"whsec_[\w+/=]{16,}",
    r"dckr_pat_[\w-]{16,}", r"dop_v1_\w{16,}", r"lin_api_\w{16,}",
    r"SG\.[\w-]{16,}\.[\w-]{16,}", r"shp(?:at|ca|pa|ss)_\w{16,}",
    r"ntn_\w{16,}", r"figd_[\w-]{16,}", r"key-[0-9a-f]{32}", r"dapi[0-9a-f]{32}",
    r"eyJ[\w-]{6,}\.[\w-]{6,}(?:\.[\w-]*)*",
    r"EAAC?[A-Za-z0-9]{40,}", r"bot\d{8,12}:[\w-]{30,}", r"\d{8,12}:AA[\w-]{33}", r"1//0[\w-]{20,}",
)  # fmt: skip
_LOOSE = re.compile(rf"(?<![A-Za-z0-9_-])(?:{'|'.join(_STARTS)})")


def hide(text: str) -> str:
    """The text with the mark in the place of whatever stands in one of these forms."""
    if "PRIVATE KEY" in text:
        text = _PRIVATE_KEY.sub(MARK, text)
    text = _HEADER.sub(_header, text)
    if ":/" in text:
        text = "".join(_without_userinfo(text))
        text = _HOOK.sub(rf"\1/{MARK}", text)
    if "=" in text:
        text = _PARAMETER.sub(_parameter, text)
    for pattern in _PROGRAM:
        text = pattern.sub(rf"\1{MARK}", text)
    text = _BEARER.sub(lambda found: found[0] if _PROSE.fullmatch(found[2]) else found[1] + MARK, text)
    text = _BASIC.sub(lambda found: found[1] + MARK if _is_basic(found[2]) else found[0], text)
    for named in _NAMED:
        text = "".join(_without_values(text, named))
    text = _LOOSE.sub(MARK, text)
    lower = text.lower()
    for words, pattern in _rules():
        if any(word in lower for word in words):
            text = pattern().sub(MARK, text)
    return text


def says_nothing(value: str) -> bool:
    """Tell what may stand under a secret name and is none, such as a reference `${TOKEN}`."""
    return bool(_NOTHING.fullmatch(value))


def _without_values(text: str, named: re.Pattern[str]) -> Iterator[str]:
    """The pieces of a text, with marks in the place of values whose names say that they are secrets."""
    start = 0
    for found in named.finditer(text):
        value = _VALUE.match(text, found.end()) if found.start() >= start and is_secret(found["name"]) else None
        if value is None:
            continue
        quote = value["quote"] or ""
        if says_nothing(value["quoted"]) if quote else _is_none(found["name"], found[0], value[0]):
            continue
        yield f"{text[start : value.start()]}{quote}{MARK}"
        start = value.end()
    yield text[start:]


def _is_none(name: str, between: str, value: str) -> bool:
    """Tell what stands unquoted after such a name from a secret: prose, code, a reference to it."""
    if _NOTHING.fullmatch(value) or value == name:
        return True
    if name.lower() not in _PLAIN_WORDS:
        return False
    return value.isdigit() or (not between.endswith("=") and bool(_PROSE.fullmatch(value)))


def _header(found: re.Match[str]) -> str:
    before, quote, scheme, value = found["before"], found["quote"], found["scheme"] or "", found["value"]
    if _NOTHING.fullmatch(value) or value.startswith(MARK):
        return found[0]
    if quote and (end := value.find(quote)) >= 0:
        return f"{before}{scheme}{MARK}{value[end:]}"
    if before.lower().lstrip("set-").startswith("cookie") or scheme.strip().lower() in _WHOLE_LINE:
        return f"{before}{scheme}{MARK}"
    first, *rest = re.split(r"(?=[\s\"'])", value, maxsplit=1)
    if scheme.strip().lower() not in _SCHEMES:
        if _PROSE.fullmatch(f"{scheme}{first}".split()[0]):  # a sentence on it, not the header
            return found[0]
        first, *rest = re.split(r"(?=[\s\"'])", f"{scheme}{value}", maxsplit=1)
        scheme = ""
    return f"{before}{scheme}{MARK}{''.join(rest)}"


def _without_userinfo(text: str) -> Iterator[str]:
    """The pieces of a text, with marks in the place of what stands before the `@` of an address."""
    start = 0
    for found in _ADDRESS.finditer(text):
        rest = found["rest"]
        place = re.split("[/?#]", rest, maxsplit=1)[0]
        if "@" not in place and re.match(
            r"[^/@:?#]*:(?!\d+(?:/|$))", rest
        ):  # a password with what an address may not hold
            place = rest
        who, at, _ = place.rpartition("@")
        if at and found.start() >= start and not _NO_PASSWORD.fullmatch(who):
            yield f"{text[start : found.end()]}{MARK}"
            start = found.end() + len(who)
    yield text[start:]


def _parameter(found: re.Match[str]) -> str:
    return f"{found['start']}{found['name']}={MARK}" if is_secret_parameter(found["name"]) else found[0]


def _is_basic(value: str) -> bool:
    """Tell `user:password` in base64 from a word."""
    try:
        return b":" in base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError):
        return False


@functools.cache
def _rules() -> list[tuple[tuple[str, ...], Callable[[], re.Pattern[str]]]]:
    """The rules of gitleaks: words of which a text must hold one, and the pattern, compiled when it is first needed."""
    return list(_read_rules())


def _read_rules() -> Iterator[tuple[tuple[str, ...], Callable[[], re.Pattern[str]]]]:
    for line in Path(__file__).with_name("tokens.tsv").read_text(encoding="utf8").splitlines():
        if not line.startswith("#"):
            _, words, pattern = line.split("\t")
            yield tuple(words.split()), functools.cache(functools.partial(re.compile, pattern))
