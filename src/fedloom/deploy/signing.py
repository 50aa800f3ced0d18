"""What a site says to other sites through the coordinator, signed with the key of its certificate."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedloom.errors import FedloomError

SIGNED = ("certificate", "signature")
"""What `Identity.signed` adds to what is said."""
_HOW = ec.ECDSA(hashes.SHA256())


class Forged(FedloomError):
    """Said in a site's name, and not signed by it."""


class Identity:
    """A site's certificate and key.

    Args:
        folder: as `fedloom certs issue` made it.
    """

    def __init__(self, folder: Path) -> None:
        self._authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        self._mine = (folder / "site.pem").read_text()
        key = serialization.load_pem_private_key((folder / "site.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key

    def signed(self, text: str) -> dict[str, str]:
        """What others need to see that this site said it."""
        return {"certificate": self._mine, "signature": self._key.sign(text.encode(), _HOW).hex()}

    def check(self, name: str, text: str, given: Mapping[str, object]) -> None:
        """See that the site of that name said this.

        Raises:
            Forged: it did not, or its certificate is not of this authority, or not in force.
        """
        try:
            certificate = x509.load_pem_x509_certificate(str(given["certificate"]).encode())
            certificate.verify_directly_issued_by(self._authority)
            key = certificate.public_key()
            assert isinstance(key, ec.EllipticCurvePublicKey)
            key.verify(bytes.fromhex(str(given["signature"])), text.encode(), _HOW)
            usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            names = [a.value for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
            now = datetime.now(UTC)
            fine = names == [name] and ExtendedKeyUsageOID.CLIENT_AUTH in usage
            fine = fine and certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc
        except Exception:  # it is what another site wrote: whatever is wrong with it, it is not signed
            fine = False
        if not fine:
            raise Forged(f"what is said in the name of {name} is not signed with a certificate of {name} in force")
