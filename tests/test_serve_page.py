# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser, where there is one: a file chosen, a file dropped, what it shows, what it refuses."""

from __future__ import annotations

import base64
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from mindvideo.predict import Predictor
from mindvideo.serve.app import Metrics, Service, create_app
from mindvideo.serve.batching import Batcher
from mindvideo.serve.server import bind
from tests.serving import POSE_CLASSES, VIDEO_CLASSES, clip, make_video, npy, pose_predictor, video_predictor

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium: install chromium and chromium-driver to run this test"
)
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], arguments[1]));
const event = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
document.getElementById("drop").dispatchEvent(event);
"""
COUNT_INKED = """
const canvas = document.getElementById("skeleton");
const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
return pixels.filter((value, place) => place % 4 === 3 && value > 0).length;
"""


READ_SCORES = """
return [...document.querySelectorAll("#scores li")].map(
  (row) => [...row.querySelectorAll("span")].map((cell) => cell.textContent));
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Driver(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def page_of(predictor: Predictor) -> Iterator[str]:
    """The address of a server in this process."""
    batcher = Batcher(predictor.classify, max_batch=1)
    app = create_app(Service(predictor, batcher, queue=8, max_seconds=60), Metrics())
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False))
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(30)
            batcher.close(30)


def text(browser: webdriver.Chrome, name: str) -> str:
    return browser.find_element(By.ID, name).text


def wait_for(browser: webdriver.Chrome, name: str, wanted: str) -> None:
    WebDriverWait(browser, 60).until(lambda found: wanted in text(found, name))


def drop(browser: webdriver.Chrome, content: bytes, name: str) -> None:
    browser.execute_script(DROP, base64.b64encode(content).decode(), name)


def assert_no_complaints(browser: webdriver.Chrome, *expected: str) -> None:
    """No script failed, and nothing was asked that the page's policy forbids; refusals by the server are `expected`."""
    messages = [entry["message"] for entry in browser.get_log("browser")]
    assert [m for m in messages if not any(part in m for part in expected)] == []


def test_poses_chosen_and_dropped(browser, tmp_path: Path):
    predictor = pose_predictor()
    arrays = [clip(40, seed) for seed in range(2)]
    found = predictor.predict(arrays)
    (tmp_path / "chosen.npy").write_bytes(npy(arrays[0]))
    with page_of(predictor) as address:
        browser.get(address)
        wait_for(browser, "about", "actionnet, 4 classes")
        browser.find_element(By.ID, "file").send_keys(str(tmp_path / "chosen.npy"))
        wait_for(browser, "label", found[0].label)
        wait_for(browser, "hint", "drop another one")
        drop(browser, npy(arrays[1]), "dropped.npy")
        wait_for(browser, "hint", "drop another one")
        unsure = f"uncertainty {found[1].uncertainty:.3f} (1 minus the largest probability)"
        assert text(browser, "uncertainty") == unsure
        assert text(browser, "label") == found[1].label
        assert text(browser, "chosen") == "dropped.npy"
        order = np.argsort(-found[1].probabilities)
        shown = [[POSE_CLASSES[i], f"{100 * found[1].probabilities[i]:.1f} %"] for i in order]
        assert browser.execute_script(READ_SCORES) == shown, "names as text, whatever they look like"
        assert browser.execute_script(COUNT_INKED) > 1000
        assert_no_complaints(browser)
        drop(browser, npy(arrays[0])[:-1], "broken.npy")
        wait_for(browser, "error", "poses: 11519 bytes of data, but the header promises 11520.")
        assert not browser.find_element(By.ID, "result").is_displayed()
        assert_no_complaints(browser, "status of 400")


def test_a_video_dropped(browser, tmp_path: Path):
    predictor = video_predictor()
    path = make_video(tmp_path / "a.avi")
    (found,) = predictor.predict([path])
    with page_of(predictor) as address:
        browser.get(address)
        wait_for(browser, "about", "tsm_r18, 3 classes")
        drop(browser, path.read_bytes(), "a.avi")
        wait_for(browser, "label", found.label)
        assert found.label in VIDEO_CLASSES
        assert f"uncertainty {found.uncertainty:.3f} (1 means no evidence" in text(browser, "uncertainty")
        images = browser.find_elements(By.CSS_SELECTOR, "#images img")
        widths = [browser.execute_script("return arguments[0].naturalWidth", image) for image in images]
        assert widths == [32] * 4
        assert_no_complaints(browser)
