"""rediss:// is spoken under a certificate that the client knows, and under no other."""

import datetime as dt
import ipaddress
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.deliveries import StoreUnavailable
from gateway.store.redis import RedisStore
from tests.stores.harness import FINGERPRINT
from tests.stores.reports import simple
from tests.stores.servers import Proxy, Server


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Return a file with a key and a certificate for 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = made.add_extension(address, critical=False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path / "server.pem"
    path.write_bytes(private + made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


async def test_a_known_certificate_is_taken(server: Server, certificate: Path, tls: ssl.SSLContext) -> None:
    async with Proxy(server, tls=tls) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}?ssl_ca_certs={certificate}"
        store = await RedisStore.open(url, FINGERPRINT)
        assert not (await store.accept(simple("a"))).duplicate
        await store.close()


async def test_an_unknown_certificate_is_refused(server: Server, tls: ssl.SSLContext) -> None:
    async with Proxy(server, tls=tls) as proxy:
        with pytest.raises(StoreUnavailable, match="certificate"):
            await RedisStore.open(f"rediss://127.0.0.1:{proxy.port}", FINGERPRINT)
