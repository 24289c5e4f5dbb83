"""The page of vdm serve, clicked through in a browser."""

import io
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from test_serve import HOSTILE, TRAIN, png
from variational_diffusion.cli import run as vdm
from variational_diffusion.run.directory import Run
from variational_diffusion.sampling import default_for
from variational_diffusion.web import Studio

CHROMIUM = shutil.which("chromium")
TABS = ["Sample", "Forward process", "Likelihood", "Inpaint", "Compress"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "run"
    small = ["--set", "network.widths=[8,8]"]
    assert vdm(["train", "digits", "--run", str(path), *TRAIN, *small]) == 0
    return path


@pytest.fixture(scope="module")
def address(run):
    command = [str(Path(sys.executable).with_name("vdm")), "serve", str(run), "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        yield server.stdout.readline().strip()
        server.terminate()  # a SIGINT is not heard where the tests were started with it ignored
        try:
            server.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()
            raise


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[1280, 390], ids=["desktop", "phone"])
def page(browser, address, request):
    """The page as it opens; afterwards nothing was asked of another machine, and nothing broke."""
    asked, broken = [], []
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    page.on("request", lambda sent: asked.append(sent.url))
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.set_default_timeout(30_000)
    page.goto(address)
    page.get_by_role("tab", name="Sample").wait_for()
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= request.param
    page.close()
    assert broken == []
    assert {url.split("/")[2] for url in asked if re.match("(http|ws)", url)} == {
        address.split("/")[2]
    }


def open_tab(page, name):
    """Open a tab, which a narrow page may have put into a menu."""
    tab = page.get_by_role("tab", name=name)
    if not tab.count():
        page.get_by_role("button", name="More tabs").click()
        tab = page.locator(".overflow-dropdown").get_by_role("button", name=name)
    tab.click()
    page.get_by_role("tabpanel").filter(visible=True).wait_for()


def press(page, name):
    page.get_by_role("button", name=name, exact=True).filter(visible=True).click()


def text_of(page, element, expected):
    """Return what a line of the page says, once it says what is expected."""
    line = page.locator(f"#{element}").filter(has_text=re.compile(expected))
    line.wait_for()
    return line.inner_text()


def picture(page, label):
    """Return the pixels of a picture that is shown, once it is there."""
    titled = page.get_by_test_id("block-label").get_by_text(label, exact=True)
    shown = page.locator(".pixels").filter(has=titled, visible=True).locator("img")
    shown.wait_for()
    page.wait_for_function(
        "image => image.complete && image.naturalWidth", arg=shown.element_handle()
    )
    content = page.request.get(shown.get_attribute("src")).body()
    return np.asarray(Image.open(io.BytesIO(content)).convert("L"))


def test_sampling_is_watched_to_its_end(page):
    page.get_by_role("spinbutton", name="number input for Steps").filter(visible=True).fill("3")
    page.keyboard.press("Tab")
    press(page, "Sample")
    assert text_of(page, "sample-text", "samples") == f"9 samples, {default_for((1, 8, 8))}"
    assert picture(page, "x̂, what they will be").std() > 0


def test_the_forward_process_follows_its_slider(page, run):
    open_tab(page, "Forward process")
    press(page, "Take a test image")
    studio = Studio(Run.open(run), "ema")
    found = []
    for t in ("0", "0.5", "1"):
        box = page.get_by_role("spinbutton", name="number input for t:").filter(visible=True)
        box.fill(t)
        page.keyboard.press("Tab")
        expected = studio.forward(studio.test_example(0), float(t))
        told = text_of(page, "forward-text", re.escape(f"γ = {expected.gamma:.2f}"))
        assert f"{expected.snr:.4g}" in told
        found.append(expected.gamma)
    assert all(a < b for a, b in pairwise(found))


def stroke(page):
    """Draw a line in the middle of the visible canvas."""
    press(page, "Brush")
    canvas = page.locator("canvas").filter(visible=True).first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 30, y)
    page.mouse.down()
    page.mouse.move(x + 30, y, steps=8)
    page.mouse.up()


def test_a_drawing_becomes_the_image(page):
    open_tab(page, "Forward process")
    stroke(page)
    press(page, "Take the drawing")
    assert "off by" in text_of(page, "forward-text", "SNR")
    assert picture(page, "Image").std() > 0


def test_the_likelihood_is_told(page, run):
    open_tab(page, "Likelihood")
    press(page, "How likely is it?")
    toast(page, "Choose an image first")
    press(page, "Take a test image")
    picture(page, "Image")
    press(page, "How likely is it?")
    told = text_of(page, "likelihood-text", "bits/dim")
    studio = Studio(Run.open(run), "ema")
    expected = studio.likelihood(studio.test_example(0))
    assert told.startswith(f"{expected.bits_per_dim:.3f} bits/dim ± {expected.error:.3f}")
    assert f"{expected.place:.0%} of 128 test images take fewer bits" in told
    assert picture(page, "Bits of each pixel").std() > 0


def test_what_is_painted_is_made_anew(page):
    open_tab(page, "Inpaint")
    press(page, "Take a test image")
    picture(page, "Image")
    page.wait_for_timeout(1000)  # the canvas takes the image
    stroke(page)
    page.get_by_role("spinbutton", name="number input for Steps").filter(visible=True).fill("3")
    page.keyboard.press("Tab")
    press(page, "Inpaint")
    told = text_of(page, "inpaint-text", "painted anew")
    painted, kept, others = map(int, re.findall(r"\d+", told))
    assert painted + others == 64
    assert 0 < painted < 32
    assert kept == others


def test_a_compressed_image_is_taken_home(page, run, tmp_path):
    values = np.random.default_rng(0).integers(0, 17, (16, 24)).astype(np.uint8)
    open_tab(page, "Compress")
    upload(page, "small.png", png((values * 15.9375).round().astype(np.uint8)))
    assert picture(page, "Image").std() > 0
    press(page, "Compress")
    told = text_of(page, "compress-text", "PNG")
    size = int(re.search(r"vdmz.*?\t([\d,]+)\t", told)[1].replace(",", ""))
    with page.expect_download() as download:
        page.get_by_role("link", name="Download image.vdmz").click()
    assert download.value.suggested_filename == "image.vdmz"
    file = tmp_path / "image.vdmz"
    download.value.save_as(file)
    assert file.stat().st_size == size
    press(page, "Decompress")
    assert "384 values decoded: the same in every bit" in text_of(page, "decompress-text", "dec")
    assert vdm(["decompress", str(run), str(file), "--out", str(tmp_path / "back.npy")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "back.npy").squeeze(), values)


def upload(page, name, content):
    page.get_by_label("File upload").last.set_input_files(
        {"name": name, "mimeType": "image/png", "buffer": content}
    )


def toast(page, expected):
    """Wait for an error on the page, check what it says, and close it."""
    error = page.get_by_test_id("toast-body").filter(has_text=re.compile(expected))
    error.wait_for()
    assert "Traceback" not in error.inner_text()
    error.get_by_test_id("toast-close").click()
    error.wait_for(state="detached")


def test_a_hostile_upload_gets_the_pages_error(page):
    open_tab(page, "Compress")
    for name, (content, message) in HOSTILE.items():
        upload(page, name, content)
        toast(page, message)
    press(page, "Compress")
    toast(page, "Choose an image first")
    upload(page, "good.png", png(np.arange(64, dtype=np.uint8).reshape(8, 8)))
    assert picture(page, "Image").std() > 0
