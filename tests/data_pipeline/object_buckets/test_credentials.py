"""obstore asks at the same address as s3fs would, with the same credentials."""

from __future__ import annotations

import ipaddress
import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from data_pipeline import storage
from data_pipeline.errors import FoldtrainError
from data_pipeline.storage import object_buckets
from data_pipeline.storage.retries import patience
from tests.data_pipeline.stub_s3 import Answer, Request, Serving, body, by_obstore, refusal, stub_s3

pytestmark = pytest.mark.xdist_group("stub_s3")


@pytest.mark.usefixtures("new_client")
def test_a_profile_says_endpoint_region_and_keys(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serving(body)
    url = os.environ["AWS_ENDPOINT_URL"]
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "lab")
    services = f"[services mine]\ns3 =\n  endpoint_url = {url}\n"
    (tmp_path / "config").write_text(f"[profile lab]\nregion = eu-west-9\nservices = mine\n{services}")
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = labkey\naws_secret_access_key = x\n")
    for _ in range(2):
        storage.read_range("s3://bucket/a", 0, 1)
    assert [by_obstore(request) for request in asked] == [False, True]
    assert all("Credential=labkey/" in request.headers["authorization"] for request in asked)
    assert all("/eu-west-9/s3/" in request.headers["authorization"] for request in asked)


@pytest.mark.usefixtures("new_client")
def test_the_variable_for_s3_goes_before_the_general_one(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serving(body)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    for _ in range(2):
        assert storage.read_range("s3://bucket/a", 0, 1) == b"0"
    assert len(asked) == 2


@pytest.mark.usefixtures("new_client")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("AWS_SKIP_SIGNATURE", "true"), ("AWS_ENDPOINT", "http://127.0.0.1:1"), ("AWS_TOKEN", "other")],
        *[("AWS_BUCKET", "other"), ("AWS_UNSIGNED_PAYLOAD", "true"), ("AWS_S3_EXPRESS", "true")],
    ],
)
def test_variables_that_botocore_does_not_know_mean_nothing(
    serving: Serving, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    asked = serving(body)
    storage.read_range("s3://bucket/a", 0, 1)
    storage.write_bytes("s3://bucket/a", b"x")
    request = asked[-1]
    assert by_obstore(request)
    assert request.path == "/bucket/a"
    assert "Credential=key/" in request.headers["authorization"]
    assert "x-amz-security-token" not in request.headers
    assert len(request.headers["x-amz-content-sha256"]) == 64


@pytest.mark.usefixtures("new_client")
def test_a_bucket_that_is_read_without_credentials_is_so_by_obstore(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serving(body)
    fs = storage.filesystem("s3://bucket")
    monkeypatch.setattr(fs, "anon", True)
    for _ in range(2):
        storage.read_range("s3://bucket/a", 0, 1)
    assert [by_obstore(request) for request in asked] == [False, True]
    assert not any("authorization" in request.headers for request in asked)


@pytest.mark.usefixtures("new_client")
def test_a_proxy_of_the_environment_is_used_by_both(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serving(body)
    monkeypatch.setenv("http_proxy", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://storage.invalid")
    for _ in range(2):
        assert storage.read_range("s3://bucket/a", 0, 1) == b"0"
    assert [by_obstore(request) for request in asked] == [False, True]
    assert {request.headers["host"] for request in asked} == {"storage.invalid"}


def own_authority(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for loopback that nobody but its file vouches for, and a server's use of it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now, loopback = datetime.now(UTC), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = folder / "authority.pem", folder / "key.pem"
    public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return public, context


@pytest.mark.usefixtures("new_client")
def test_an_authority_of_ones_own_is_trusted_by_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public, context = own_authority(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(public))
    with stub_s3(body, context) as (url, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        for _ in range(2):
            assert storage.read_range("s3://bucket/a", 0, 1) == b"0"
        assert [by_obstore(request) for request in asked] == [False, True]


@pytest.mark.usefixtures("new_client")
def test_what_cannot_be_carried_over_stays_with_s3fs(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serving(body)
    fs = storage.filesystem("s3://bucket")
    monkeypatch.setattr(fs, "req_kw", {"RequestPayer": "requester"})
    for _ in range(3):
        storage.read_range("s3://bucket/a", 0, 1)
    assert not any(map(by_obstore, asked))


@pytest.mark.usefixtures("new_client")
def test_a_bucket_that_moves_is_found_again(serving: Serving) -> None:
    moved: list[bool] = []

    def respond(request: Request) -> Answer:
        if moved and "/eu-west-9/" not in request.headers["authorization"]:
            return refusal(301, "PermanentRedirect", x_amz_bucket_region="eu-west-9")
        return body(request)

    asked = serving(respond)
    storage.read_range("s3://bucket/a", 0, 1)
    moved.append(True)
    for _ in range(2):
        assert storage.read_range("s3://bucket/a", 0, 1) == b"0"
    found = [("/eu-west-9/" in request.headers["authorization"], by_obstore(request)) for request in asked]
    assert found == [(False, False), (False, True), (False, False), (True, False), (True, True)]


@pytest.mark.usefixtures("new_client")
def test_credentials_that_expire_are_renewed_before_they_do(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a container's or an instance's role: each answer of the role's server has keys for some minutes."""
    monkeypatch.setattr(object_buckets, "CREDENTIALS_SECONDS", 0.0)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    given: list[int] = []

    def role(_: Request) -> Answer:
        given.append(len(given))
        lifetime = timedelta(minutes=5 if len(given) < 4 else 60)  # botocore renews within the last ten
        expires = (datetime.now(UTC) + lifetime).isoformat(timespec="seconds")
        keys = f'"AccessKeyId": "K{given[-1]}", "SecretAccessKey": "s", "Token": "T{given[-1]}"'
        return Answer(200, f'{{{keys}, "Expiration": "{expires}"}}'.encode(), {"Content-Type": "application/json"})

    asked = serving(body)
    with stub_s3(role) as (url, _):
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/role")
        storage.read_range("s3://bucket/a", 0, 1)
        for _ in range(6):
            assert storage.read_range("s3://bucket/a", 0, 1) == b"0"
    used = [request.headers["authorization"].partition("Credential=")[2].partition("/")[0] for request in asked]
    tokens = [request.headers["x-amz-security-token"] for request in asked]
    assert all(map(by_obstore, asked[1:]))
    assert used[-1] == "K3"
    assert used == sorted(used)
    assert len(set(used)) > 2
    assert tokens == [key.replace("K", "T") for key in used]


@pytest.mark.usefixtures("new_client")
def test_credentials_that_end_are_told_in_the_words_of_botocore(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import CredentialRetrievalError

    serving(body)
    storage.read_range("s3://bucket/a", 0, 1)

    async def ended() -> None:
        raise CredentialRetrievalError(provider="sso", error_msg="the login has ended")

    credentials = storage.filesystem("s3://bucket").s3._request_signer._credentials
    monkeypatch.setattr(credentials, "get_frozen_credentials", ended)
    with patience(0), pytest.raises(FoldtrainError, match=r"the login has ended.*aws sso login"):
        storage.read_range("s3://bucket/a", 0, 1)
