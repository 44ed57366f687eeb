"""A receiver with Kling's own API, behind TLS."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tls import TlsFront, tls_front


@pytest.fixture
def front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TlsFront]:
    """TLS in front of a receiver; its `target` is to be set. Programs of this process trust its certificate."""
    with tls_front(tmp_path) as front:
        monkeypatch.setenv("SSL_CERT_FILE", str(front.certificate))
        yield front
