"""Certificates: one authority for one federation, one certificate for each site, withdrawn at once.

certs/ca.pem           the authority: everybody has it        certs/ca.key       only where certificates are issued
certs/server.pem .key  the coordinator                        certs/issued.json  who was issued what, and is revoked
certs/sites/NAME/      what one site is given: ca.pem, site.pem, site.key
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fedloom.errors import ConfigError, FedloomError, MissingExtra

from .alone import alone

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as e:
    raise MissingExtra("cryptography", "deploy", "certificates of sites") from e

_LETTERS = set("abcdefghijklmnopqrstuvwxyz0123456789-_.")
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
ISSUE, RENEW = "fedloom certs issue NAME", "fedloom certs renew"
"""The commands that make a new certificate: for a site, for the coordinator."""
_YEAR = 365
_ENTRY = {"name", "until", "revoked"}  # what is said of a certificate
_STARTS = timedelta(minutes=-5)  # clocks differ a little


class Untrusted(FedloomError):
    """A certificate the other side does not take: it has ended, or another authority issued it."""

    def __init__(self, why: object, anew: str = ISSUE) -> None:
        super().__init__(f"{why}. A new one is made where the authority is: {anew}")


@dataclass(frozen=True)
class Peer:
    """Who is at the other end of a connection: the name in its certificate, and which certificate it is."""

    name: str
    serial: str
    until: float


def check_site(name: str) -> str:
    """A site's name: lower case letters, digits and `-_.`, 64 at most; it becomes a folder's name.

    Raises:
        ConfigError: another.
    """
    if not name or len(name) > 64 or set(name) - _LETTERS or name.startswith("."):
        raise ConfigError(f"a site is named by up to 64 lower case letters, digits, '-', '_' and '.'; given {name!r}")
    return name


class Authority:
    """The authority of one federation, in a folder.

    Args:
        folder: as above.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def init(folder: Path, hosts: Sequence[str] = ("localhost", "127.0.0.1"), days: int = 2 * _YEAR) -> Authority:
        """A new authority, and the coordinator's certificate for these host names and addresses.

        Raises:
            ConfigError: there is one already; a new one would shut every site out. Or one of these is no host.
        """
        names = x509.SubjectAlternativeName([_host(h) for h in hosts])
        if (folder / "ca.key").exists():
            raise ConfigError(
                f"{folder} holds an authority already; a new one would shut out every site it issued. Another "
                f"certificate for the coordinator: fedloom certs renew --folder {folder}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        key, name = ec.generate_private_key(ec.SECP256R1()), _named("fedloom authority")
        certificate = (
            _builder(name, name, key.public_key(), 10 * _YEAR)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        _write(folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        _write(folder / "ca.key", _private(key), 0o600)
        _write(folder / "issued.json", b"{}\n", 0o644)
        made = Authority(folder)
        made._serve_as(names, days)
        return made

    def renew(self, hosts: Sequence[str] | None = None, days: int = 2 * _YEAR) -> list[str]:
        """A new certificate for the coordinator, which it takes up when it is started again; sites keep theirs.

        Args:
            hosts: names and addresses; None: those of the certificate it replaces.

        Returns:
            the hosts it is for.
        """
        with self._changing():
            if hosts is not None:
                names = x509.SubjectAlternativeName([_host(h) for h in hosts])
            else:
                before = _certificate(self.folder / "server.pem")
                names = before.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            self._serve_as(names, days)
        return [str(name.value) for name in names]

    def issue(self, name: str, days: int = _YEAR) -> Path:
        """A certificate for a site; one it had before is revoked.

        Returns:
            the folder to give to that site, over a way you trust: it holds the site's private key.
        """
        check_site(name)
        with self._changing():
            before = self._in_force(name)
            folder = self.folder / "sites" / name
            folder.mkdir(parents=True, exist_ok=True)
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"fedloom://site/{name}")])
            serial, until = self._issue(name, folder / "site", names, ExtendedKeyUsageOID.CLIENT_AUTH, days)
            _write(folder / "ca.pem", (self.folder / "ca.pem").read_bytes(), 0o644)
            entry = {"name": name, "until": until.isoformat(timespec="seconds"), "revoked": ""}
            self._save({**self._revoked(before), serial: entry})  # not before there is a new one
        return folder

    def revoke(self, name: str) -> list[str]:
        """Every certificate of this site counts no more; a coordinator that uses this folder sees it at once.

        Returns:
            their serial numbers.

        Raises:
            ConfigError: there is none to revoke.
        """
        with self._changing():
            found = self._in_force(name)
            if not found:
                known = ", ".join(sorted({e["name"] for e in self.issued().values()})) or "nobody"
                raise ConfigError(f"no certificate of {name!r} is in force; issued so far: {known}")
            self._save(self._revoked(found))
        return found

    def issued(self) -> dict[str, dict[str, Any]]:
        """Serial number -> name, until when, and when it was revoked ("" if it was not)."""
        path = self.folder / "issued.json"
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError:
            raise ConfigError(f"{self.folder} holds no authority: fedloom certs init --folder {self.folder}") from None
        except (OSError, ValueError) as e:
            raise _unreadable(path, e) from None
        if not isinstance(found, dict) or not all(isinstance(e, dict) and e.keys() >= _ENTRY for e in found.values()):
            raise _unreadable(path, "it does not say who was issued what")
        return found

    def refusal(self, peer: Peer) -> str | None:
        """Why this peer may not speak now; None where it may."""
        entry = self.issued().get(peer.serial)
        if entry is None or entry["name"] != peer.name:
            return f"this certificate was not issued to {peer.name!r} here"
        if entry["revoked"]:
            return f"the certificate of {peer.name!r} was revoked {entry['revoked']}"
        if peer.until < time.time():
            return f"the certificate of {peer.name!r} ended {entry['until']}"
        return None

    # ------------------------------------------------------------
    def _serve_as(self, names: x509.SubjectAlternativeName, days: int) -> None:
        self._issue("coordinator", self.folder / "server", names, ExtendedKeyUsageOID.SERVER_AUTH, days)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One change at a time: each writes down all that was issued, and a revocation must not be lost to another."""
        self.issued()
        with alone(self.folder, wait=True):
            yield

    def _issue(
        self, name: str, at: Path, names: x509.SubjectAlternativeName, usage: x509.ObjectIdentifier, days: int
    ) -> tuple[str, datetime]:
        authority = _certificate(self.folder / "ca.pem")
        try:
            signer = serialization.load_pem_private_key((self.folder / "ca.key").read_bytes(), None)
        except FileNotFoundError:
            raise ConfigError(f"{self.folder} has no ca.key: certificates are issued where the authority is") from None
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(_named(name), authority.subject, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
            .add_extension(names, critical=False)
            .sign(signer, hashes.SHA256())  # pyright: ignore[reportArgumentType]
        )
        _write(at.with_suffix(".key"), _private(key), 0o600)
        _write(at.with_suffix(".pem"), certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        return f"{certificate.serial_number:X}", certificate.not_valid_after_utc

    def _in_force(self, name: str) -> list[str]:
        """Serial numbers."""
        return [serial for serial, entry in self.issued().items() if entry["name"] == name and not entry["revoked"]]

    def _revoked(self, serials: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What was issued, with these revoked now."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return {s: {**entry, "revoked": now} if s in serials else entry for s, entry in self.issued().items()}

    def _save(self, issued: Mapping[str, Any]) -> None:
        _write(self.folder / "issued.json", (json.dumps(issued, indent=2) + "\n").encode(), 0o644)


# ---------------------------------------------------------------- the two ends of a connection


def server_context(folder: Path) -> ssl.SSLContext:
    """TLS 1.3 that takes nobody without a certificate of this authority.

    Raises:
        Untrusted: no site would take its own: it has ended, or another authority issued it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, folder / "ca.pem", folder / "server.pem", folder / "server.key")
    _counts(folder / "server.pem", f"{RENEW} --folder {folder}")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def site_context(folder: Path) -> ssl.SSLContext:
    """TLS 1.3 to a coordinator of this authority and no other, with this site's certificate.

    Raises:
        Untrusted: no coordinator would take it: it has ended, or another authority issued it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _load(context, folder / "ca.pem", folder / "site.pem", folder / "site.key")
    _counts(folder / "site.pem", ISSUE)  # a coordinator hangs up on one that does not, without a word
    return context


def peer_of(certificate: Mapping[str, Any]) -> Peer:
    """The peer that `ssl` has verified."""
    parts: Any = certificate.get("subject", ())
    names = [value for part in parts for key, value in part if key == "commonName"]
    until = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    return Peer(names[0] if names else "", str(certificate["serialNumber"]).lstrip("0"), until)


def name_in(folder: Path) -> str:
    """The site's name in the certificate it was given."""
    certificate = _certificate(folder / "site.pem")
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _counts(path: Path, anew: str) -> None:
    """Raises Untrusted where a certificate has ended, or is not of the authority beside it."""
    authority, mine = _certificate(path.with_name("ca.pem")), _certificate(path)
    try:
        mine.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise Untrusted(
            f"the certificate {path} was not issued by the authority of {path.with_name('ca.pem')}", anew
        ) from None
    if mine.not_valid_after_utc.timestamp() < time.time():
        raise Untrusted(f"the certificate {path} ended {_written(mine.not_valid_after_utc)}", anew)


def counting(folder: Path) -> str:
    """From when to when a site's certificate counts, and what time it is here."""
    mine = _certificate(folder / "site.pem")
    first, last = _written(mine.not_valid_before_utc), _written(mine.not_valid_after_utc)
    return f"from {first} to {last}, and the clock here says {_written(datetime.now(UTC))}"


def _load(context: ssl.SSLContext, authority: Path, certificate: Path, key: Path) -> None:
    for path in (authority, certificate, key):
        if not path.exists():
            raise ConfigError(
                f"no file {path}. Certificates are made by `fedloom certs init` (coordinator) and `fedloom certs issue "
                f"NAME` (site)"
            )
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(authority)
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as e:
        raise ConfigError(
            f"{certificate.name}, {key.name} and {authority.name} in {certificate.parent} do not go together, or one "
            f"is damaged ({e.reason or e}): put all of them there as they were made"
        ) from None


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"no file {path}; it is made by `fedloom certs`") from None
    except ValueError:
        raise ConfigError(f"{path} is no certificate, or damaged: put it there as `fedloom certs` made it") from None


def _builder(name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + _STARTS)
        .not_valid_after(now + timedelta(days=days))
    )


def _written(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign,
        crl_sign=sign,
        encipher_only=False,
        decipher_only=False,
    )


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        if _HOST.fullmatch(text):
            return x509.DNSName(text)
    raise ConfigError(
        f"a coordinator's host is a name or an address, as in coordinator.example.org or 192.0.2.7, without https:// "
        f"and without its port; given {text!r}"
    )


def _unreadable(path: Path, why: object) -> ConfigError:
    return ConfigError(
        f"{path} cannot be read, or is damaged ({why}): put a copy of it back. Where there is none, write {{}} into it "
        f"and issue every site a new certificate, as those it does not name count no more"
    )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _write(path: Path, data: bytes, mode: int) -> None:
    """Whole or not at all, and never readable by others for a moment if it is a key."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(partial, path)
