"""A signed work order: what may be made, how many, where, with which recipe and firmware, and when.

Station and signer each read it, check its signature with keys that they trust themselves, and judge by it; how far an
order is used up is for their own memories. Here are its form and its rules.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from hal.errors import OrderRefused, quote
from station.signed import SIGNATURE_LIMIT, SUFFIX, Signer, check_signature, load_signers, read_bounded

FORMAT: Final = "hallmark-work-order-1"
SIZE_LIMIT: Final = 32 * 1024
"""Octets: an order travels with each request to the signer."""

Word = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""SHA-256 in hex."""


class OrderFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The order's file.

    `quantity` units may pass. Each needs one certificate; `rework_allowance` more may be signed, for units that got one
    and then failed and haven't been scrapped yet. `recipes`: the files' digests. `images`: those of firmware images.
    """

    format: Literal["hallmark-work-order-1"]
    id: Word
    sku: Word
    quantity: Annotated[int, Meta(ge=1, le=100_000_000)]
    stations: Annotated[list[Word], Meta(min_length=1, max_length=100)]
    recipes: Annotated[list[Digest], Meta(min_length=1, max_length=50)]
    from_: dt.datetime = msgspec.field(name="from")
    until: dt.datetime
    images: Annotated[list[Digest], Meta(max_length=100)] = []
    rework_allowance: Annotated[int, Meta(ge=0, le=100_000_000)] = 0

    @property
    def most_signatures(self) -> int:
        return self.quantity + self.rework_allowance


@dataclass(frozen=True, slots=True)
class SignedOrder:
    """An order whose signature holds. `data` and `signature` as they came; `digest` is SHA-256 over `data`."""

    file: OrderFile
    data: bytes
    signature: bytes
    digest: bytes
    signer: str
    """Name of the key file."""


def order_signers(path: Path) -> tuple[Signer, ...]:
    """The keys that may sign orders, from a file or a folder; none where there is none: then no order stands."""
    if path.is_dir() and not any(path.glob("*.pem")):
        return ()
    return load_signers(path) if path.exists() else ()


def parse_order(data: bytes) -> OrderFile:
    """OrderRefused for anything but the strict form."""
    if len(data) > SIZE_LIMIT:
        raise OrderRefused(f"the work order has more than {SIZE_LIMIT} octets")
    try:
        order = msgspec.json.decode(data, type=OrderFile)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise OrderRefused(f"the work order can't be read: {quote(str(error), 200)}") from error
    if order.from_.tzinfo is None or order.until.tzinfo is None:
        raise OrderRefused(
            f"work order {order.id} has a time without its zone; expected UTC, as 2026-01-31T06:00:00Z"
        )
    if order.until <= order.from_:
        raise OrderRefused(f"work order {order.id} ends before it begins")
    return order


def verify_order(data: bytes, signature: bytes, signers: Sequence[Signer]) -> SignedOrder:
    """The order, once one of `signers` has signed these octets; OrderRefused else. Nothing is read of it before."""
    signer = check_signature(data, signature, signers) if len(signature) <= SIGNATURE_LIMIT else None
    if signer is None:
        names = ", ".join(item.name for item in signers) or "no key at all"
        raise OrderRefused(
            f"the work order is not signed by a key that may ({names})",
            hint="Ask whoever plans production for the order and its .sig as they were signed.",
        )
    return SignedOrder(parse_order(data), data, signature, hashlib.sha256(data).digest(), signer.name)


def read_order(path: Path) -> tuple[bytes, bytes]:
    """The octets of FILE and FILE.sig."""
    data = read_bounded(path, SIZE_LIMIT, OrderRefused)
    return data, read_bounded(path.with_name(path.name + SUFFIX), SIGNATURE_LIMIT, OrderRefused)


def check_order(order: OrderFile, *, sku: str, station: str, recipe: bytes, now: dt.datetime) -> None:
    """OrderRefused when this order does not permit this. What it says of images and quantity is checked elsewhere."""
    if order.sku != sku:
        raise OrderRefused(f"work order {order.id} is for {order.sku}, not for {quote(sku)}")
    if station not in order.stations:
        raise OrderRefused(f"work order {order.id} is not for station {quote(station)}")
    if recipe.hex() not in order.recipes:
        raise OrderRefused(
            f"work order {order.id} is not for this recipe, {recipe.hex()[:16]}…",
            hint="The recipe on this station is another edition than the order's: install the one, or get a new order.",
        )
    if now < order.from_:
        raise OrderRefused(f"work order {order.id} begins on {_shown(order.from_)}")
    if now > order.until:
        raise OrderRefused(f"work order {order.id} ended on {_shown(order.until)}")


def check_images(order: OrderFile, images: Sequence[tuple[str, str]]) -> None:
    """OrderRefused when an image, as (name, SHA-256 in hex), is none that this order names."""
    for name, digest in images:
        if digest not in order.images:
            raise OrderRefused(
                f"work order {order.id} does not name firmware image {quote(name)}, {digest[:16]}…",
                hint="The image on this station is another than the order's: install the one, or get a new order.",
            )


def _shown(at: dt.datetime) -> str:
    return f"{at.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC"
