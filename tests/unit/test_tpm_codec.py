"""What TPMs and their makers write is read strictly: response headers, capabilities, certificates in NV, codes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.tpm import certificates, codec, failures, public, templates
from drivers.tpm.driver import TctiSettings
from hal.errors import AlreadyOwned, LockedOut, ProtocolViolation, TpmError
from hal.types import KeyType, SrkTemplate


def response(body: bytes, code: int = 0) -> bytes:
    return bytes.fromhex("8001") + (10 + len(body)).to_bytes(4, "big") + code.to_bytes(4, "big") + body


@given(st.binary(max_size=80))
def test_any_octets_are_a_response_or_a_violation(octets: bytes) -> None:
    for read in (codec.response_code, codec.handles, codec.properties):
        try:
            read(octets)
        except ProtocolViolation:
            continue


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20), st.booleans())
def test_handles_are_read_as_they_were_written(handles: list[int], more: bool) -> None:
    body = bytes([more]) + (1).to_bytes(4, "big") + len(handles).to_bytes(4, "big")
    written = response(body + b"".join(handle.to_bytes(4, "big") for handle in handles))
    assert codec.handles(written) == (more, handles)
    for broken in (written + b"\0", written[:-1]):
        resized = broken[:2] + len(broken).to_bytes(4, "big") + broken[6:]
        with pytest.raises(ProtocolViolation):
            codec.handles(resized)


@given(st.binary(max_size=300), st.binary(max_size=20))
def test_a_certificate_is_found_without_wrapping_and_padding(content: bytes, padding: bytes) -> None:
    der = b"\x30\x82" + len(content).to_bytes(2, "big") + content
    wrapped = certificates.TCG_FULL_CERTIFICATE + len(der).to_bytes(2, "big") + der
    assert certificates.stripped(der + padding) == der
    assert certificates.stripped(wrapped + padding) == der
    assert certificates.each(der + wrapped + der) == [der, der, der]
    assert (
        certificates.stripped(der[:-1]) in (None, der[:-1])
        if not content
        else certificates.stripped(der[:-1]) is None
    )


@given(st.binary(max_size=60))
def test_no_octets_bring_the_reader_of_certificates_down(octets: bytes) -> None:
    certificates.each(octets)
    certificates.key_of(octets)
    assert not certificates.stripped(octets) or octets


def test_codes_mean_what_the_specification_says() -> None:
    assert isinstance(failures.mapped(0x921, "x"), LockedOut)
    assert isinstance(failures.mapped(0x9A2, "x"), AlreadyOwned)
    assert isinstance(failures.mapped(0x98E, "x"), AlreadyOwned)
    error = failures.mapped(0x902, "making a key")
    assert isinstance(error, TpmError)
    assert error.rc == 0x902
    assert str(error) == "making a key: TPM_RC_OBJECT_MEMORY (0x902)"
    assert isinstance(failures.mapped(0x7001B, "x"), TpmError)
    assert isinstance(failures.mapped(0x90001, "x"), ProtocolViolation)
    assert isinstance(failures.mapped(0xB0921, "x"), LockedOut), "a resource manager passes it on"


@pytest.mark.parametrize("kind", list(KeyType))
def test_device_keys_are_made_here_and_never_leave(kind: KeyType) -> None:
    area = public.octets(templates.device_key(kind))
    assert public.is_resident(area)
    assert not public.attributes(area) & 0x10000, "restricted keys can't sign what TLS asks for"
    assert public.same_template(area, templates.device_key(kind))
    assert not public.same_template(area, templates.srk(SrkTemplate.P256))


def test_settings_say_what_is_for_the_bench() -> None:
    assert TctiSettings(tcti="swtpm:path=/x").bench_only
    assert not TctiSettings().bench_only
