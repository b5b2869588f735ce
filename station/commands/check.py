"""`hallmark check`: everything that can be wrong before the first board comes: configuration, recipes, trust, images,
credentials, token. Touches no board and changes nothing.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from hal.errors import (
    ConfigError,
    ConfigurationUntrusted,
    EscrowIncomplete,
    HallmarkError,
    PeerUnavailable,
)
from hal.types import TokenCondition
from station.commands.config import no_roll_back
from station.config import Configuration, load_configuration
from station.escrow_media import Medium
from station.images import ImageStore
from station.messages import SignerState
from station.paths import Paths
from station.recipe import Recipe
from station.recipe_file import load_recipe
from station.sealing import UPLOAD_CREDENTIAL, load_upload_key
from station.signer.administration import ACTIVE, NEXT, authority_of
from station.signer.policy import judge
from station.signer.profiles import Profile, load_profile, load_profiles
from station.signer_client import SignerClient
from station.toml_source import Key
from station.trust.health import NOTE, examine
from station.trust.policy import EkTrust
from station.trust.source import load
from station.trust_store import load_anchors, load_file
from station.work_order import order_signers

HELP = "check configuration, recipes, trust, images, credentials and token, without touching a board"
SOON: Final = dt.timedelta(days=90)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.add_argument("--offline", action="store_true", help="don't ask the signer for the token's state")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, and what is wrong with it, if anything."""

    what: str
    detail: str
    error: HallmarkError | None = None
    warning: bool = False

    @property
    def state(self) -> str:
        return "error" if self.error else "warning" if self.warning else "fine"


def run(args: argparse.Namespace) -> int:
    """0 when all is fine (warnings included), 1 when something is not, 2 when a file is wrong."""
    configuration, findings = _configuration(args.paths)
    looks: list[Callable[[Configuration], Iterator[Finding]]] = [
        _recipes,
        _profiles,
        _ek_trust,
        _officers,
        _media,
        _sources,
        _orders,
        _credentials,
    ]
    if not args.offline:
        looks.append(_token)
    for look in looks:
        findings += _collected(look, configuration)
    if args.json:
        rows = [
            {
                "what": item.what,
                "state": item.state,
                "detail": item.detail,
                "hint": item.error.hint if item.error else "",
            }
            for item in findings
        ]
        print(json.dumps(rows, indent=2))
    else:
        for item in findings:
            print(f"{item.state:<8} {item.what}: {item.detail}")
            if item.error:
                print(f"         What to do: {item.error.hint}")
    errors = [item.error for item in findings if item.error]
    if any(isinstance(error, ConfigError) for error in errors):
        return 2
    return 1 if errors else 0


def _configuration(paths: Paths) -> tuple[Configuration, list[Finding]]:
    """As a process would load it; what no release key signed is a finding, and the rest is looked at all the same."""
    try:
        configuration = load_configuration(paths)
        released = configuration.released
        findings = []
        if released is not None:
            history = no_roll_back(paths, released)
            detail = f"set {released.serial}, {len(released.files)} files, {released.digest.hex()}"
            findings.append(Finding("configuration", f"{detail}; roll-back {history}"))
    except ConfigurationUntrusted as error:
        configuration = load_configuration(paths, signed=False)
        findings = [Finding("configuration", str(error), error)]
    detail = f"{configuration.source.file}: {configuration.file.station.mode} mode"
    return configuration, [Finding("station.toml", detail), *findings]


def _collected(
    look: Callable[[Configuration], Iterator[Finding]], configuration: Configuration
) -> list[Finding]:
    """What one look found, up to the error that ended it."""
    found: list[Finding] = []
    what = look.__name__.strip("_").replace("_", " ")
    try:
        found.extend(look(configuration))
    except ConfigError as error:
        found += [Finding(what, str(item), item) for item in (error, *error.others)]
    except HallmarkError as error:
        found.append(Finding(what, str(error), error))
    return found


def _recipes(configuration: Configuration) -> Iterator[Finding]:
    for recipe in _all_recipes(configuration):
        yield Finding("recipe", f"{recipe.name}: {recipe.sku}, {len(recipe.steps)} steps")
        images = ImageStore(
            configuration.path(configuration.file.trust.images),
            configuration.path(configuration.file.trust.firmware),
        )
        for name in recipe.images():
            image, descriptor = images.sealed(name)
            os.close(descriptor)
            yield Finding("image", f"{name}: version {image.version}, {image.size} octets, signed")
        sets_auths = any(item.step.use == "tpm-ownership" and item.options.wanted for item in recipe.steps)
        if sets_auths and not configuration.file.escrow.officers:
            raise configuration.source.error(
                ("escrow", "officers"),
                f"recipe {recipe.name} sets auths; expected at least one escrow officer",
            )
        symmetric = recipe.symmetric_key()
        if symmetric is not None and symmetric.keys == "individual":
            name = configuration.file.device_keys.upload_key
            if not name:
                raise configuration.source.error(
                    ("device_keys", "upload_key"),
                    f"recipe {recipe.name} makes symmetric keys for the cloud; expected the uploader's public key",
                )
            load_upload_key(configuration.path(name))
            yield Finding("upload key", name)
        if any(item.step.use == "enroll" for item in recipe.steps) and not configuration.file.sink:
            raise configuration.source.error(
                ("sink",), f"recipe {recipe.name} enrolls; expected at least one sink"
            )
    if not configuration.file.nest:
        yield Finding("nests", "none: the station will serve no board", warning=True)
    if not configuration.file.discovery:
        yield Finding("discovery", "none: the station will see no board", warning=True)


def _all_recipes(configuration: Configuration) -> list[Recipe]:
    return [
        load_recipe(configuration, name) for name in sorted({nest.recipe for nest in configuration.file.nest})
    ]


def _profiles(configuration: Configuration) -> Iterator[Finding]:
    folder = configuration.path(configuration.file.signer.profiles)
    profiles = load_profiles(folder)
    for recipe in _all_recipes(configuration):
        for name in recipe.profiles():
            if name not in profiles:
                raise ConfigError(
                    f"recipe {recipe.name} names profile {name!r}; expected {name}.toml", file=str(folder)
                )
            if profiles[name].file.key.resident and name not in recipe.attested_profiles():
                raise ConfigError(
                    f"recipe {recipe.name} takes profile {name!r}, which is for keys that are shown to be in a TPM;"
                    ' expected place = "tpm" in its certificate step, or another profile',
                    file=str(folder / f"{name}.toml"),
                    key="key.resident",
                )
            yield Finding("profile", f"{name}: {_life(profiles[name])}")


def _life(profile: Profile) -> str:
    validity = profile.file.validity
    if validity.no_expiry:
        return "no expiry"
    used = profile.least_days - validity.warehouse_days
    return f"{validity.days} days; after {validity.warehouse_days} days in a warehouse at least {used} days of use"


def _issuing(configuration: Configuration, state: SignerState) -> Iterator[Finding]:
    """Whether the CAs of now and next can issue the profiles that recipes name, and for how long."""
    folder = configuration.path(configuration.file.signer.profiles)
    names = sorted({name for recipe in _all_recipes(configuration) for name in recipe.profiles()})
    for generation in state.generations:
        if generation.state not in (ACTIVE, NEXT):
            continue
        authority = authority_of(generation)
        now = max(dt.datetime.now(dt.UTC), dt.datetime.fromtimestamp(generation.since or 0, dt.UTC))
        for name in names:
            found = judge(load_profile(folder, name), authority, now)
            what = f"profile {name} under CA {generation.number}"
            yield Finding(what, found.text, found.problem, warning=found.soon)


def _ek_trust(configuration: Configuration) -> Iterator[Finding]:
    policies = [
        policy for recipe in _all_recipes(configuration) if (policy := recipe.ek_policy()) is not None
    ]
    if not policies:
        return
    trust = load(configuration)
    if not trust.roots and any(policy.trust not in (EkTrust.NONE, EkTrust.LIST) for policy in policies):
        raise ConfigError("holds no EK root; expected the TPM vendors' roots", file=trust.origin.place)
    source = f"bundle {trust.origin.serial}" if trust.origin.kind == "bundle" else "folder, not signed"
    yield Finding(
        "EK trust",
        f"{source}: {len(trust.roots)} roots, {len(trust.intermediates)} intermediates,"
        f" {len(trust.crls)} revocation lists",
    )
    for ailment in examine(trust, dt.datetime.now(dt.UTC)):
        if ailment.state != NOTE:
            yield Finding("EK trust", ailment.what, warning=True)


def _sources(configuration: Configuration) -> Iterator[Finding]:
    """CAs of certificates that are made elsewhere are there where a recipe needs them."""
    folders = {
        "pool": configuration.file.trust.pool,
        "preloaded": configuration.file.trust.preloaded,
    }
    for recipe in _all_recipes(configuration):
        options = recipe.certificate()
        if options is None or options.source not in folders:
            continue
        folder = configuration.path(folders[options.source])
        anchors = [x509.load_der_x509_certificate(der) for der in load_anchors(folder)]
        if not anchors:
            raise ConfigError(
                f"holds no CA, and recipe {recipe.name} takes {options.source} certificates", file=str(folder)
            )
        yield Finding(f"{options.source} CAs", f"{len(anchors)}, for lot {options.lot} of {recipe.name}")
        yield from _dates(f"{options.source} CA", anchors)


def _officers(configuration: Configuration) -> Iterator[Finding]:
    for name in configuration.file.escrow.officers:
        for certificate in load_file(configuration.path(name)):
            yield Finding("escrow officer", certificate.subject.rfc4514_string())
            yield from _dates("escrow officer", [certificate])


def _media(configuration: Configuration) -> Iterator[Finding]:
    """A medium that isn't there is no mistake: boards that need it wait for it."""
    for text in configuration.file.escrow.media:
        medium = Medium(Path(text), configuration.paths.state, configuration.bench)
        try:
            medium.check()
        except EscrowIncomplete as error:
            yield Finding("escrow medium", str(error), warning=True)
        else:
            yield Finding("escrow medium", text)


def _dates(what: str, certificates: list[x509.Certificate]) -> Iterator[Finding]:
    now = dt.datetime.now(dt.UTC)
    for certificate in certificates:
        if certificate.not_valid_after_utc < now + SOON:
            day = certificate.not_valid_after_utc.date()
            yield Finding(what, f"{certificate.subject.rfc4514_string()} ends {day}", warning=True)


def _orders(configuration: Configuration) -> Iterator[Finding]:
    """Who may sign work orders, where nothing is made without one."""
    keys = order_signers(configuration.path(configuration.file.orders.keys))
    if configuration.orders_required and not keys:
        raise configuration.source.error(
            ("orders", "keys"),
            "nothing is made without a signed work order; expected at least one public key (*.pem) there",
        )
    if keys:
        yield Finding("work orders", f"signed by {', '.join(key.name for key in keys)}")


def _credentials(configuration: Configuration) -> Iterator[Finding]:
    """Each credential that a sink or a recipe's driver names is there, and closed to others."""
    named: list[tuple[Key, str]] = []
    for index, sink in enumerate(configuration.file.sink):
        if isinstance(name := sink.settings.get("key"), str):
            named.append((("sink", index, "settings", "key"), name))
    for index, nest in enumerate(configuration.file.nest):
        recipe = load_recipe(configuration, nest.recipe)
        named += [(("nest", index, "recipe"), name) for name in recipe.credentials]
    if any(
        options is not None and options.keys == "individual"
        for options in (recipe.symmetric_key() for recipe in _all_recipes(configuration))
    ):
        named.append((("device_keys", "upload_key"), UPLOAD_CREDENTIAL))
    for key, name in named:
        path = configuration.paths.credential(name)
        try:
            mode = path.stat().st_mode
        except PermissionError:
            yield Finding("credential", f"{name}: only its own service may look", warning=True)
            continue
        except OSError:
            error = configuration.source.error(
                key, f"credential {name!r} is missing; expected the file {path}"
            )
            yield Finding("credential", str(error), error)
            continue
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            error = configuration.source.error(key, f"{path} is open to others; expected mode 0600")
            yield Finding("credential", str(error), error)
        else:
            yield Finding("credential", f"{name}: there, closed to others")


def _token(configuration: Configuration) -> Iterator[Finding]:
    try:
        state = SignerClient(configuration.paths.signer_socket).check_token()
    except PeerUnavailable as error:
        yield Finding("CA token", f"the signer isn't running ({error})", error)
        return
    if state.condition == TokenCondition.READY and state.chain:
        yield Finding("CA token", f"{state.label}: ready, issues as {state.subject} until {state.not_after}")
        yield from _dates("CA", [x509.load_der_x509_certificate(state.chain[0])])
        if state.problem:
            problem = HallmarkError(state.problem, hint=state.hint)
            yield Finding("CA token", state.problem, problem)
    else:
        failure = HallmarkError(f"{state.label}: {state.condition} {state.problem}", hint=state.hint or None)
        yield Finding("CA token", str(failure), failure)
    yield from _issuing(configuration, state)
