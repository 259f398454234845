"""Headless Chromium without network access, to check how pages render."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_SECONDS = 60
_OPTIONS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    # Only the driver's own machine can be resolved: any other request of a page fails.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
)

# Contrast of each text with its background, as the browser renders both. A canvas understands every color syntax.
# Texts in SVG count as well, by their fill.
_CONTRAST = """
const canvas = document.createElement('canvas'); canvas.width = canvas.height = 1;
const pen = canvas.getContext('2d', {willReadFrequently: true});
const paint = (layers) => {
  pen.clearRect(0, 0, 1, 1);
  for (const layer of layers) { pen.fillStyle = layer; pen.fillRect(0, 0, 1, 1); }
  return Array.from(pen.getImageData(0, 0, 1, 1).data).slice(0, 3);
};
const luminance = (rgb) => {
  const [r, g, b] = rgb.map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const found = [];
for (const element of document.body.querySelectorAll('*')) {
  const own = Array.from(element.childNodes).some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || !element.getClientRects().length || element.closest('title')) continue;
  const layers = [];
  for (let e = element; e; e = e.parentElement) layers.unshift(getComputedStyle(e).backgroundColor);
  const style = getComputedStyle(element);
  const back = paint(['white', ...layers]);
  const front = paint(['white', ...layers, element instanceof SVGElement ? style.fill : style.color]);
  const [low, high] = [luminance(back), luminance(front)].sort((a, b) => a - b);
  found.push([(high + 0.05) / (low + 0.05), element.tagName + '.' + element.getAttribute('class') + ': '
    + element.textContent.trim().slice(0, 40)]);
}
return found;
"""
_BROKEN_IMAGES = """
return Array.from(document.images).filter((i) => !(i.complete && i.naturalWidth > 0)).map((i) => i.alt || i.src);
"""


# Best practices count as well as the rules of WCAG 2.2, levels A and AA.
_AXE = """
const done = arguments[arguments.length - 1];
axe.run(document, {resultTypes: ['violations']}).then(
  (result) => done(result.violations.map((v) => [v.impact, v.id, v.nodes.slice(0, 3).map((n) => n.html).join(' | ')])),
  (error) => done([['critical', 'axe', String(error)]]));
"""


class Browser:
    """A running Chromium."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self._driver = driver

    def show(self, page: Path, *, width: int = 1200, dark: bool = False) -> None:
        """Open a page, and discard logged errors and requests of earlier pages."""
        for kind in ("browser", "performance"):
            self._driver.get_log(kind)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self._driver.get(page.as_uri())

    def run(self, script: str) -> Any:
        return self._driver.execute_script(script)

    def errors(self) -> list[str]:
        """Return console messages about errors, scripts and violations of the content security policy."""
        return [str(line["message"]) for line in self._driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Return requested URLs."""
        messages = [json.loads(line["message"])["message"] for line in self._driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def broken_images(self) -> list[str]:
        return list(self.run(_BROKEN_IMAGES))

    def accessibility_problems(self) -> list[str]:
        """Return the violations that axe-core finds, with their impact."""
        self.run(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8"))
        return [f"{impact} {rule}: {where}" for impact, rule, where in self._driver.execute_async_script(_AXE)]

    def contrasts(self) -> list[tuple[float, str]]:
        """Return the contrast of each visible text with its background, and the text."""
        return [(ratio, text) for ratio, text in self.run(_CONTRAST)]


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Run Chromium in a block; skip the test if it is not installed."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver_program = shutil.which("chromedriver")
    if not (program and driver_program):
        pytest.skip("Chromium or its driver not found: install the Debian packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for option in _OPTIONS:
        options.add_argument(option)
    if os.geteuid() == 0:
        # Chromium cannot use its sandbox as root.
        options.add_argument("--no-sandbox")
    service = Service(executable_path=driver_program)
    try:
        driver = webdriver.Chrome(options=options, service=service)
        try:
            driver.set_page_load_timeout(_SECONDS)
            driver.set_script_timeout(5 * _SECONDS)  # axe-core takes long on a busy machine
            yield Browser(driver)
        finally:
            driver.quit()
    finally:
        # The driver process may outlive its browser.
        service.stop()
