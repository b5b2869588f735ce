"""Name constraints (RFC 5280, 4.2.1.10): whether the CAs above a certificate let it have its names.

Judges what a device certificate has: directory names, DNS names and URIs. Other kinds of names are refused under a CA
that constrains that kind, since nobody here could say whether they fit.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.x509.oid import NameOID

_SPACES: Final = re.compile(r"\s+")
_HOST: Final = re.compile(
    r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)+"
)


def names_refused(
    above: Sequence[x509.Certificate], subject: x509.Name, alternative: Sequence[x509.GeneralName]
) -> str:
    """Why a certificate of these names may not be below `above` (in any order); empty when it may."""
    names: list[x509.GeneralName] = [*alternative]
    if list(subject):
        names.insert(0, x509.DirectoryName(subject))
    names += _host_like(subject, alternative)
    for authority in above:
        try:
            rules = authority.extensions.get_extension_for_class(x509.NameConstraints).value
        except x509.ExtensionNotFound:
            continue
        for name in names:
            refused = _refused(rules, name)
            if refused:
                return f"{authority.subject.rfc4514_string()} {refused} (nameConstraints)"
    return ""


def _host_like(subject: x509.Name, alternative: Sequence[x509.GeneralName]) -> Iterable[x509.DNSName]:
    """Common names that look like hosts, where there is no DNS name: verifiers hold them to DNS constraints."""
    if any(isinstance(name, x509.DNSName) for name in alternative):
        return
    for attribute in subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        if isinstance(attribute.value, str) and _HOST.fullmatch(attribute.value):
            yield x509.DNSName(attribute.value)


def _refused(rules: x509.NameConstraints, name: x509.GeneralName) -> str:
    kind = type(name)
    permitted = [one for one in rules.permitted_subtrees or () if type(one) is kind]
    excluded = [one for one in rules.excluded_subtrees or () if type(one) is kind]
    if not permitted and not excluded:
        return ""
    shown = _shown(name)
    within = _WITHIN.get(kind)
    if within is None:
        return f"constrains names of the kind of {shown}, which can't be judged here"
    if kind is x509.UniformResourceIdentifier and not _host_of(name.value):
        return f"constrains URIs by host, and {shown} has none"
    for one in excluded:
        if within(name.value, one.value):
            return f"excludes {shown} with {_shown(one)}"
    if permitted and not any(within(name.value, one.value) for one in permitted):
        return f"permits {' or '.join(_shown(one) for one in permitted)}, which {shown} is not within"
    return ""


def _shown(name: x509.GeneralName) -> str:
    value = name.value
    return repr(value.rfc4514_string()) if isinstance(value, x509.Name) else ascii(value)[:120]


def _directory_within(name: x509.Name, base: x509.Name) -> bool:
    """Whether `base` is the beginning of `name`, compared as RFC 5280, 7.1, has it: no case, spaces folded."""
    longer, shorter = _comparable(name), _comparable(base)
    return longer[: len(shorter)] == shorter


def _comparable(name: x509.Name) -> list[frozenset[tuple[str, str]]]:
    return [
        frozenset((attribute.oid.dotted_string, _folded(attribute.value)) for attribute in rdn)
        for rdn in name.rdns
    ]


def _folded(value: str | bytes) -> str:
    if isinstance(value, bytes):
        return value.hex()
    return _SPACES.sub(" ", unicodedata.normalize("NFKC", value).strip()).casefold()


def _dns_within(name: str, base: str) -> bool:
    """`base` itself, and what has further labels to its left; with a leading dot only those."""
    name, base = name.casefold().rstrip("."), base.casefold().rstrip(".")
    return not base or name.endswith("." + base.removeprefix(".")) or name == base


def _uri_within(uri: str, base: str) -> bool:
    """By its host: exactly `base`, or what is below it when that begins with a dot."""
    host, base = _host_of(uri), base.casefold()
    return host.endswith(base) if base.startswith(".") else host == base


def _host_of(uri: str) -> str:
    try:
        host = urlsplit(uri).hostname or ""
    except ValueError:
        return ""
    return host.casefold() if not _is_address(host) else ""


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


_WITHIN: Final[dict[type[x509.GeneralName], Callable[[Any, Any], bool]]] = {
    x509.DirectoryName: _directory_within,
    x509.DNSName: _dns_within,
    x509.UniformResourceIdentifier: _uri_within,
}
