"""station.toml: what may stand in it, and its checked form. Says nothing of how anything is done."""

from __future__ import annotations

import dataclasses
import fnmatch
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from hal.driver import Driver
from hal.errors import ConfigError
from hal.registry import Registry, load
from station.configuration_set import LIVE, LOCAL_FILE, STATION_FILE, ConfigurationSet, read_set, unpack
from station.paths import Paths
from station.strict import Problems, convert
from station.toml_source import Key, TomlSource, read

Word = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="a name of letters, digits, dot, dash or underscore, at most 64",
    ),
]
Size = Annotated[int, Meta(ge=1, description="a whole number of at least 1")]
MAX_NESTS: Final = 64


class StationSection(Struct, frozen=True):
    name: Word
    mode: Literal["production", "bench"] = "production"
    drivers: list[Word] = []
    minimum_free_mib: Size = 64


class DiscoverySection(Struct, frozen=True):
    driver: Word
    settings: dict[str, Any] = {}


class NestSection(Struct, frozen=True):
    """`place` is exact or a glob over places; `recipe` a file in the recipes folder."""

    name: Word
    place: str
    recipe: Word


class SignerSection(Struct, frozen=True):
    driver: Word = "pkcs11"
    settings: dict[str, Any] = {}
    ca_key: Word = "issuing-ca"
    canary_key: Word = "canary"
    wrap_key: Word = "resume"
    audit_key: Word = "audit"
    profiles: str = "profiles"
    clock_jump_hours: Annotated[int, Meta(ge=1, le=8760, description="hours, 1 to 8760")] = 4
    longest_off_days: Annotated[int, Meta(ge=1, le=3650, description="days, 1 to 3650")] = 60
    crl_days: Annotated[int, Meta(ge=1, le=3650, description="days, 1 to 3650")] = 30


class DeviceKeysSection(Struct, frozen=True):
    """`upload_key`: the uploader's public key, PEM, to which symmetric keys on their way to the cloud are sealed."""

    upload_key: str = ""


class EscrowSection(Struct, frozen=True):
    """`media`: folders on other disks, for recipes that want more than one copy."""

    officers: list[str] = []
    media: list[str] = []


class TrustSection(Struct, frozen=True):
    ek: str = "trust/ek"
    bundle_signers: str = "trust/bundle-signers"
    ek_list_signers: str = "trust/ek-list-signers"
    firmware: str = "trust/firmware.pem"
    images: str = "images"
    pool: str = "trust/pool"
    pool_signers: str = "trust/pool-signers"
    preloaded: str = "trust/preloaded"
    preloaded_signers: str = "trust/preloaded-signers"


class PoolSection(Struct, frozen=True):
    """`low_water`: with fewer free in a lot that a recipe draws from, status warns. `minimum_days`: warehouse time that
    a certificate made elsewhere has to have left when it comes to a unit.
    """

    low_water: Size = 50
    minimum_days: Size = 545


class SinkSection(Struct, frozen=True):
    name: Word
    driver: Word
    settings: dict[str, Any] = {}


class WorkOrderSection(Struct, frozen=True):
    id: Word
    sku: Word
    quantity: Size


class StatusSection(Struct, frozen=True):
    operators: Word = "hallmark-operators"
    engineers: Word = "hallmark-engineers"


Origin = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$",
        description="a URL without https://, at most 128 characters, no spaces",
    ),
]


class AuditSection(Struct, frozen=True):
    """`required`: no unit goes on without a checkpoint over the trail, at most `max_age` seconds and `max_records`
    records old. `origin`: the beginning of the trail's name; empty for "hallmark/" and the station's name.
    """

    mode: Literal["off", "on", "required"] = "on"
    origin: Origin | Literal[""] = ""
    max_age: Size = 600
    max_records: Size = 1000


class PolicySection(Struct, frozen=True):
    """`long_lived_days`: a leaf that is valid for longer needs a key place that software can't copy it from."""

    long_lived_days: Size = 825


class OrdersSection(Struct, frozen=True):
    """`required` None: in production yes, on a bench no. `keys`: who may sign work orders."""

    required: bool | None = None
    keys: str = "trust/orders"
    reconcile_minutes: Annotated[int, Meta(ge=1, le=1440, description="minutes, 1 to 1440")] = 15


class LocalStationSection(Struct, frozen=True):
    """What a machine may say of itself."""

    name: Word | None = None
    minimum_free_mib: Size | None = None


class LocalFile(Struct, frozen=True):
    """The whole of local.toml: what differs from station to station, and can't make one less safe."""

    station: LocalStationSection = LocalStationSection()
    discovery: list[DiscoverySection] = []
    nest: list[NestSection] = []
    status: StatusSection = StatusSection()


class StationFile(Struct, frozen=True):
    """The whole of station.toml."""

    station: StationSection
    discovery: list[DiscoverySection] = []
    nest: list[NestSection] = []
    signer: SignerSection = SignerSection()
    escrow: EscrowSection = EscrowSection()
    device_keys: DeviceKeysSection = DeviceKeysSection()
    trust: TrustSection = TrustSection()
    sink: list[SinkSection] = []
    work_order: list[WorkOrderSection] = []
    orders: OrdersSection = OrdersSection()
    status: StatusSection = StatusSection()
    policy: PolicySection = PolicySection()
    audit: AuditSection = AuditSection()
    pool: PoolSection = PoolSection()


@dataclass(frozen=True, slots=True)
class Configuration:
    """A station.toml whose names, drivers and settings fit together."""

    paths: Paths
    file: StationFile
    source: TomlSource
    registry: Registry
    released: ConfigurationSet | None = None
    """The signed set that all of this comes from; None on a bench."""
    unpacked: Path | None = None
    """Where this process has the set's files."""

    @property
    def bench(self) -> bool:
        return self.file.station.mode == "bench"

    @property
    def orders_required(self) -> bool:
        """Whether nothing is made without a signed work order: in production, unless station.toml says otherwise."""
        return _orders_required(self.file)

    @property
    def folder(self) -> Path:
        """Relative paths of station.toml start here. In production these are the octets that were signed."""
        return self.unpacked or self.paths.configuration.parent

    @property
    def digest(self) -> str:
        """SHA-256 of the signed set, hex: on each unit's record. Empty on a bench."""
        return self.released.digest.hex() if self.released else ""

    def path(self, relative: str) -> Path:
        """Of a file or folder that station.toml names. Images and credentials are no part of a signed set."""
        live = Path(relative).parts[:1] and Path(relative).parts[0] in LIVE
        return (self.paths.configuration.parent if live else self.folder) / relative

    def shown(self, path: Path) -> str:
        """How to name one of these files to a person: where they know it."""
        if self.unpacked is not None and path.is_relative_to(self.unpacked):
            path = self.paths.configuration.parent / path.relative_to(self.unpacked)
        return str(path)

    def settings(self, driver: Driver, given: dict[str, Any], key: Key) -> Any:
        """`given` as the driver's settings dataclass; ConfigError at `key` of station.toml."""
        problems = Problems()
        made = convert(self.source, driver.settings, problems, key, given)
        problems.raise_first()
        return made

    def nest_for(self, place: str) -> NestSection | None:
        """The nest that claims `place`: an exact name before a glob, the first glob in the file's order."""
        for nest in self.file.nest:
            if nest.place == place:
                return nest
        for nest in self.file.nest:
            if fnmatch.fnmatchcase(place, nest.place):
                return nest
        return None


def load_configuration(paths: Paths, *, drivers: bool = True, signed: bool = True) -> Configuration:
    """station.toml below `paths`, checked, and in production only as part of a signed set: else ConfigurationUntrusted.

    With `drivers` false no driver is imported, and their settings go unchecked. With `signed` false a set isn't asked
    for: for commands that only show what stands in the files, never for a process that acts by them.
    """
    source = read(paths.configuration)
    released, unpacked = None, None
    if signed and _production(source):
        released = read_set(paths.configuration.parent, paths.release_key)
        unpacked = unpack(released)
        source = read(unpacked / STATION_FILE, name=str(paths.configuration))
    problems = Problems()
    local_file = paths.configuration.with_name(LOCAL_FILE)
    if local_file.exists():
        local = read(local_file)
        convert(local, LocalFile, problems)
        problems.raise_first()
        source = source.overlaid(local)
    file = convert(source, StationFile, problems)
    problems.raise_first()
    if file is None:
        raise ConfigError("could not be read", file=source.file)
    _check_names(source, file, problems)
    problems.raise_first()
    registry = load(file.station.drivers) if drivers else Registry()
    configuration = Configuration(paths, file, source, registry, released, unpacked)
    if drivers:
        _check_drivers(configuration, problems)
        problems.raise_first()
    return configuration


def _production(source: TomlSource) -> bool:
    """Whether this station.toml asks for production; anything but a plain "bench" does."""
    station = source.data.get("station")
    return not (isinstance(station, dict) and station.get("mode") == "bench")


def _orders_required(file: StationFile) -> bool:
    said = file.orders.required
    return file.station.mode != "bench" if said is None else said


def _check_names(source: TomlSource, file: StationFile, problems: Problems) -> None:
    for section, attribute in (("nest", "name"), ("nest", "place"), ("sink", "name"), ("work_order", "id")):
        seen: dict[str, int] = {}
        for index, item in enumerate(getattr(file, section)):
            value = getattr(item, attribute)
            if value in seen:
                problems.add(
                    source,
                    (section, index, attribute),
                    f"{value!r} is taken by {section}[{seen[value]}]; expected another",
                )
            seen.setdefault(value, index)
    for index, text in enumerate(file.escrow.media):
        if not Path(text).is_absolute() or ".." in Path(text).parts or text in file.escrow.media[:index]:
            message = f"{text!r} won't do; expected an absolute path of a folder, each one once"
            problems.add(source, ("escrow", "media", index), message)
    signer = file.signer
    for name, label in (("ca_key", signer.ca_key), ("canary_key", signer.canary_key)):
        if label == signer.wrap_key or label.startswith(f"{signer.wrap_key}-"):
            message = (
                f"{label!r} is for keys that wrap secrets; expected one that doesn't begin like wrap_key"
            )
            problems.add(source, ("signer", name), message)
    if file.work_order and _orders_required(file):
        problems.add(
            source,
            ("work_order", 0),
            "work orders have to be signed here; expected none in this file, but `hallmark orders import`",
        )
    if len(file.nest) > MAX_NESTS:
        problems.add(source, ("nest",), f"{len(file.nest)} nests; expected at most {MAX_NESTS}")
    named = set(file.station.drivers)
    for key, driver in _named_drivers(file):
        if driver not in named:
            problems.add(
                source, key, f"driver {driver!r} is not in station.drivers; expected it to be listed there"
            )
    relative: list[tuple[Key, str]] = [
        (("trust", "ek"), file.trust.ek),
        (("trust", "bundle_signers"), file.trust.bundle_signers),
        (("trust", "ek_list_signers"), file.trust.ek_list_signers),
        (("trust", "firmware"), file.trust.firmware),
        (("trust", "images"), file.trust.images),
        (("trust", "pool"), file.trust.pool),
        (("trust", "pool_signers"), file.trust.pool_signers),
        (("trust", "preloaded"), file.trust.preloaded),
        (("trust", "preloaded_signers"), file.trust.preloaded_signers),
        (("signer", "profiles"), file.signer.profiles),
        (("device_keys", "upload_key"), file.device_keys.upload_key),
        (("orders", "keys"), file.orders.keys),
        *((("escrow", "officers", index), officer) for index, officer in enumerate(file.escrow.officers)),
    ]
    for key, text in relative:
        if Path(text).is_absolute() or ".." in Path(text).parts:
            problems.add(
                source, key, f"{text!r} leads elsewhere; expected a path below station.toml's folder"
            )


def _named_drivers(file: StationFile) -> list[tuple[Key, str]]:
    found: list[tuple[Key, str]] = [(("signer", "driver"), file.signer.driver)]
    found += [(("discovery", index, "driver"), item.driver) for index, item in enumerate(file.discovery)]
    found += [(("sink", index, "driver"), item.driver) for index, item in enumerate(file.sink)]
    return found


def _check_drivers(configuration: Configuration, problems: Problems) -> None:
    file, source, registry = configuration.file, configuration.source, configuration.registry
    for index, name in enumerate(file.station.drivers):
        if name in registry.broken:
            problems.add(
                source,
                ("station", "drivers", index),
                f"driver {name!r} can't be used: {registry.broken[name]}",
            )
        elif registry.drivers[name].bench_only and not configuration.bench:
            problems.add(source, ("station", "drivers", index), f"driver {name!r} is for bench mode only")
    tables: list[tuple[Key, str, dict[str, Any]]] = [
        (("signer", "settings"), file.signer.driver, file.signer.settings),
        *(
            (("discovery", i, "settings"), item.driver, item.settings)
            for i, item in enumerate(file.discovery)
        ),
        *((("sink", i, "settings"), item.driver, item.settings) for i, item in enumerate(file.sink)),
    ]
    for key, name, given in tables:
        if name in registry.drivers:
            convert(source, registry.drivers[name].settings, problems, key, given)


def as_settings(driver: Driver, given: dict[str, Any]) -> Any:
    """`given` as the driver's settings dataclass, where no file says them: on an officer's machine."""
    problems = Problems()
    made = convert(TomlSource(f"settings of {driver.name}", given, {}), driver.settings, problems)
    problems.raise_first()
    return made


def as_toml_values(settings: object) -> dict[str, object]:
    """A driver's settings dataclass as plain values, to be sent to a worker."""
    values = (
        dataclasses.asdict(settings)
        if dataclasses.is_dataclass(settings) and not isinstance(settings, type)
        else {}
    )
    return {str(name): msgspec.to_builtins(value) for name, value in values.items()}
