"""A real Chromium without a window, driven by Selenium; tests are left out where it is missing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("selenium", reason="Selenium drives the browser")

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
PHONE = (360, 780)
DESK = (1200, 900)
_SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-device-scale-factor=1",
    "--lang=en",
)


@contextmanager
def chromium(*switches: str) -> Iterator[webdriver.Chrome]:
    """A browser with nothing of anybody's in it."""
    if not (CHROMIUM.exists() and DRIVER.exists()):
        pytest.skip("needs a browser; apt-get install chromium chromium-driver")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = Options()
        options.binary_location = str(CHROMIUM)
        for switch in (*_SWITCHES, f"--user-data-dir={profile}", *switches):
            options.add_argument(switch)
        driver = webdriver.Chrome(options, Service(str(DRIVER)))
        try:
            driver.set_page_load_timeout(60)
            yield driver
        finally:
            driver.quit()


def show_as(driver: webdriver.Chrome, size: tuple[int, int], scheme: str = "light") -> None:
    """A screen of so many pixels, and what its owner prefers."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
