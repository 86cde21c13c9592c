"""The Redis URL: what it may say, and what is shown of it."""

import ssl
from pathlib import Path

import pytest

from gptjobs import broker
from gptjobs.errors import RedisUnreachable
from gptjobs.settings import address, public

URL = "rediss://trainer:s3cret@redis.example:6380/0"


def test_certificates_are_verified_unless_the_url_says_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.touch()
    assert address(URL).tls == {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    assert address(f"{URL}?ssl_ca_certs={file}").tls["ssl_ca_certs"] == str(file)
    for said in ("none", "CERT_NONE"):
        assert address(f"{URL}?ssl_cert_reqs={said}").tls == {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    assert address("redis://127.0.0.1/0").tls == {}


def test_celery_verifies_certificates_as_the_store_does() -> None:
    """kombu by itself takes CERT_NONE for a rediss:// URL that says nothing."""
    with broker.connect(URL).connection() as connection:
        assert connection.ssl == {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
        assert connection.ssl["ssl_cert_reqs"] not in (None, ssl.CERT_NONE)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "cannot be read"),
        ("redis.example:6379", "cannot be read"),
        ("http://redis.example", "cannot be read"),
        ("redis://:s3cret@redis.example:port/0", "cannot be read"),
        ("redis:///0", "cannot be read"),
        (f"{URL}?ssl_ca_cert=x", "'ssl_ca_cert' is not known"),
        (f"{URL}?db=3", "'db' is not known"),
        (f"{URL}?ssl_ca_certs=/nowhere.pem", "names no file"),
        (f"{URL}?ssl_cert_reqs=maybe", "none of required, optional, none"),
        ("redis://:s3cret@redis.example/0?ssl_cert_reqs=required", "is for rediss://"),
    ],
)
def test_a_url_that_means_nothing_is_refused_without_its_password(url: str, why: str) -> None:
    with pytest.raises(RedisUnreachable) as refusal:
        address(url)
    assert why in refusal.value.message
    assert refusal.value.hint
    assert "s3cret" not in refusal.value.message + refusal.value.hint


def test_what_is_shown_of_a_url_has_neither_user_nor_password_nor_parameters() -> None:
    assert public(f"{URL}?ssl_certfile=/home/me/own.pem") == "rediss://redis.example:6380/0"
