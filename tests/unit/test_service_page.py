"""The page in a real browser: a mouse, a keyboard, a phone; nothing is asked of anybody but the service."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("faiss", reason="needs the extra serve")
pytest.importorskip("playwright", reason="needs playwright, of the extra test")

from playwright import sync_api as playwright

from lightning_pfc.service.keys import Keys
from tests.serving import Running

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium, as `apt install chromium` brings it")

SIZES = {"desktop": (1280, 900), "phone": (360, 740)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def service(export_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(export_folder, tmp_path_factory.mktemp("page") / "gallery")
    yield running
    running.close()


@pytest.fixture(params=sorted(SIZES))
def page(request: pytest.FixtureRequest, browser: Any, service: Running) -> Iterator[Any]:
    width, height = SIZES[request.param]
    context = browser.new_context(
        viewport={"width": width, "height": height}, has_touch=request.param == "phone", is_mobile=False
    )
    found = context.new_page()
    found.set_default_timeout(20_000)
    asked: list[str] = []
    complaints: list[str] = []
    found.on("request", lambda one: asked.append(one.url))
    found.on(
        "console", lambda one: complaints.append(one.text) if one.type == "error" and "422" not in one.text else None
    )
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.goto(service.url)
    found.wait_for_selector("#model:not(:empty)")
    yield found
    assert found.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    assert [url for url in asked if not url.startswith((service.url, f"blob:{service.url}"))] == []
    assert complaints == []
    context.close()


def _says(page: Any, text: str) -> None:
    playwright.expect(page.locator("#message")).to_contain_text(text, timeout=20_000)


def test_two_pictures_are_compared(page: Any, pictures: Path) -> None:
    first, same, other = (str(pictures / name) for name in ("id01/p0.png", "id01/p1.jpg", "id02/p0.png"))
    page.set_input_files("#file-a", first)
    for second in (same, other):
        page.set_input_files("#file-b", second)
        playwright.expect(page.locator("#verdict")).to_contain_text("far=1e-2", timeout=20_000)
        playwright.expect(page.locator("body[aria-busy]")).to_have_count(0)
    assert page.locator("#histogram line").count() == 3  # the axis, the threshold, the score
    assert page.locator(".pair img:visible").count() == 2


def test_a_dropped_file_is_taken(page: Any, pictures: Path) -> None:
    data = list((pictures / "id03" / "p0.png").read_bytes())
    page.evaluate(
        """data => {
            const carried = new DataTransfer();
            carried.items.add(new File([new Uint8Array(data)], "p0.png", { type: "image/png" }));
            const event = new DragEvent("drop", { dataTransfer: carried, cancelable: true, bubbles: true });
            document.getElementById("drop-a").dispatchEvent(event);
        }""",
        data,
    )
    page.wait_for_selector("#drop-a img:visible")


def test_an_identity_s_life_by_keyboard(page: Any, pictures: Path, request: pytest.FixtureRequest) -> None:
    name = f"anna {request.node.callspec.id} <b>&"
    page.set_input_files("#enrol-files", [str(pictures / "id05" / one) for one in ("p0.png", "p1.jpg")])
    page.focus("#enrol-name")
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    _says(page, "is enrolled")
    page.set_input_files("#file-search", str(pictures / "id05" / "p2.png"))
    page.wait_for_selector("#matches li")
    assert page.locator("#matches .name").first.inner_text() == name  # as text, not as markup
    playwright.expect(page.locator("#matches img").first).to_have_js_property("naturalWidth", 24, timeout=20_000)

    page.get_by_label(f"Rename {name}").press("Enter")
    page.fill("#rename-name", name + "2")
    page.keyboard.press("Enter")
    again = page.get_by_label(f"Delete {name}2")
    again.wait_for()

    again.press("Enter")
    page.wait_for_selector("#delete-dialog[open]")
    page.keyboard.press("Enter")  # the safe answer has the focus
    page.wait_for_selector("#delete-dialog", state="hidden")
    assert again.count() == 1
    again.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    _says(page, "is deleted")
    assert again.count() == 0


def test_what_goes_wrong_is_said(page: Any, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"not a picture")
    page.set_input_files("#file-search", str(tmp_path / "no.png"))
    playwright.expect(page.locator("#message.error")).to_contain_text("JPEG, PNG", timeout=20_000)


_DROP = """([where, names]) => {
    const carried = new DataTransfer();
    for (const name of names) carried.items.add(new File([new Uint8Array([1])], name, { type: "image/png" }));
    const event = new DragEvent("drop", { dataTransfer: carried, cancelable: true, bubbles: true });
    document.querySelector(where).dispatchEvent(event);
    return event.defaultPrevented;
}"""


@pytest.mark.parametrize(
    ("where", "names", "said"),
    [
        ("h1", ["a.png"], "Drop a picture on one of the fields"),
        ("#drop-search", ["a.png", "b.png", "c.png"], "3 files were dropped"),
        ("#drop-search", [], "no file"),
    ],
)
def test_a_drop_that_is_not_meant_stays_on_the_page(page: Any, where: str, names: list[str], said: str) -> None:
    assert page.evaluate(_DROP, [where, names])  # else the browser opens the file in place of the page
    _says(page, said)


@pytest.fixture
def bare(browser: Any) -> Iterator[Any]:
    """A page where the browser's own complaints are no fault."""
    context = browser.new_context()
    found = context.new_page()
    found.set_default_timeout(20_000)
    yield found
    context.close()


def test_what_another_has_deleted_goes_from_the_list(bare: Any, service: Running, pictures: Path) -> None:
    with (pictures / "id07" / "p0.png").open("rb") as file:
        assert service.client.post("/identities", files={"image": file}, data={"name": "bert"}).status_code == 201
    bare.goto(service.url)
    button = bare.get_by_label("Delete bert")
    button.wait_for()
    assert service.client.delete("/identities/bert").status_code == 204
    button.click()
    bare.click("#delete-dialog .danger")
    _says(bare, "there is no identity 'bert'")
    playwright.expect(button).to_have_count(0)


def test_a_key_that_is_wrong_can_be_given_again(export_folder: Path, bare: Any) -> None:
    keys, secret = Keys().with_new("page", ["read"])
    running = Running(export_folder, None, keys=keys)
    try:
        bare.goto(running.url)
        _says(bare, "asks for a key")
        for key, said in (
            ("wrong", "does not know this key"),
            ("schl\u00fcssel\u2192", "is no key"),
            (secret + " ", ""),
        ):
            playwright.expect(bare.locator("#key")).to_be_focused()
            bare.keyboard.type(key)
            bare.keyboard.press("Enter")
            _says(bare, said)
        bare.wait_for_selector("#model:not(:empty)")
        playwright.expect(bare.locator("#key-form")).to_be_hidden()
    finally:
        running.close()


def test_a_service_that_falls_silent_is_not_waited_for_for_ever(service: Running, bare: Any, pictures: Path) -> None:
    bare.clock.install()
    bare.goto(service.url)
    bare.wait_for_selector("#model:not(:empty)")
    bare.route("**/search", lambda route: None)  # never answered
    bare.set_input_files("#file-search", str(pictures / "id01" / "p0.png"))
    bare.wait_for_selector("body[aria-busy]", state="attached")
    bare.clock.fast_forward(61_000)
    _says(bare, "did not answer within 60 seconds")
    bare.unroute("**/search")
    bare.route("**/search", lambda route: route.abort())
    bare.set_input_files("#file-search", str(pictures / "id02" / "p0.png"))
    _says(bare, "see whether it runs")
