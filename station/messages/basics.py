"""What messages are made of: bounded names, texts and octets, facts, and the plain "done"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

Name = Annotated[str, Meta(min_length=1, max_length=128)]
Text = Annotated[str, Meta(max_length=2000)]
Blob = Annotated[bytes, Meta(max_length=64 * 1024)]
if TYPE_CHECKING:
    Fact = str | int | bool | bytes | list[str] | list[bytes] | None
else:
    # msgspec can't decode into a union of str and bytes, nor of two lists: the store checks facts as they come in.
    Fact = Any
Facts = dict[Name, Fact]


class Ok(Struct, frozen=True, tag="ok"):
    """Done, and durable where the request says so."""


class Issued(Struct, frozen=True, tag="issued"):
    """DER, leaf first, up to but without the root."""

    chain: list[Blob]
    work_order: Text = ""
    """What the signer counted it against; empty where there was no order."""
