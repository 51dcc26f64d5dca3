"""Keys that catalogues need, and signed addresses."""

from __future__ import annotations

import os
from collections.abc import Iterable
from urllib.parse import urlsplit

from terramind_plugin.errors import ConfigError, DataError, one_line
from terramind_plugin.sources.rules import HOSTS

AZURE = ".blob.core.windows.net"
"""End of the hosts whose addresses Planetary Computer signs."""
EODATA = "s3://eodata/"
"""Beginning of the addresses of files in Copernicus Data Space."""
EXTRA = "pip install 'terramind-plugin[sources]'"


def check_keys(modality: str, addresses: Iterable[str]) -> None:
    """Raise a ConfigError if a source needs a key that is not set.

    Args:
        modality: Name of the modality.
        addresses: Addresses of its catalogue or of its files.
    """
    hosts = set()
    for address in addresses:
        hosts.add((urlsplit(address).hostname or "").lower())
        if address.startswith(EODATA) and not (os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_PROFILE")):
            raise ConfigError(
                f"{modality} is in Copernicus Data Space, whose files need S3 keys: create them at "
                "https://eodata-s3keysmanager.dataspace.copernicus.eu and set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY."
            )
    azure = any(host.endswith(AZURE) for host in hosts) or HOSTS["planetary_computer"] in hosts
    if azure and modality == "S1RTC" and not _subscription_key():
        raise ConfigError(
            "Planetary Computer provides S1RTC only with a key: set PC_SDK_SUBSCRIPTION_KEY, or leave S1RTC out of "
            "--modalities."
        )


def _subscription_key() -> str | None:
    try:
        from planetary_computer.settings import Settings
    except ImportError as error:
        raise ConfigError(f"Planetary Computer needs the package planetary-computer: {EXTRA}") from error
    return Settings.get().subscription_key or os.environ.get("PC_SDK_SUBSCRIPTION_KEY")


def sign(address: str) -> str:
    """Return a readable address: addresses in Azure get a signature, which is valid for about 45 minutes.

    Raises:
        ConfigError: The package planetary-computer is not installed.
        DataError: Planetary Computer gave no signature.
    """
    if not (urlsplit(address).hostname or "").endswith(AZURE):
        return address
    try:
        from planetary_computer import sign_url
    except ImportError as error:
        raise ConfigError(f"Planetary Computer needs the package planetary-computer: {EXTRA}") from error
    try:
        return str(sign_url(address))
    except Exception as error:  # the package passes on errors of requests and pydantic
        raise DataError(f"Planetary Computer gave no signature: {one_line(error)}") from error
