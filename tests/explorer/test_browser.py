"""The explorer in a real browser: every page opened, clicked through, without errors and without foreign requests."""

import time

import pytest
from explorer.bare import bare
from explorer.world import ADDRESSES, served

from saelab.explorer import export

PAGES = ADDRESSES | {"error": "/run/run0/latent/4800"}
ROW = ".vrow"


@pytest.fixture
def page(chromium, site):
    chromium.resize(1280)
    chromium.errors.clear()
    chromium.requests.clear()
    yield chromium
    chromium.settle()
    expected = [error for error in chromium.errors if "404" in error and "4800" in error]
    assert [error for error in chromium.errors if error not in expected] == []
    foreign = [one for one in chromium.requests if not one.startswith((site.base, "data:", "blob:", "file:", "about:"))]
    assert foreign == []


@pytest.mark.parametrize("name", PAGES)
def test_every_page_draws_itself_wide_and_narrow_light_and_dark(page, site, name):
    for width, dark in ((1280, False), (390, True)):
        page.resize(width, dark=dark)
        page.open(site.base + PAGES[name])
        assert page.js("document.documentElement.dataset.ready") == name
        assert page.js("document.documentElement.dataset.theme") == ("dark" if dark else "light")
        assert page.js("document.getElementById('main').innerText.length") > 20
        assert page.js("document.documentElement.scrollWidth") <= width
    if name in ("run", "compare", "scaling"):
        page.until("document.querySelectorAll('.plot .main-svg').length")


def test_the_first_page_is_painted_at_once(page, site):
    page.open(site.base + "/run/run0/latents")
    first = page.js(
        "performance.getEntriesByType('paint').find((one) => one.name === 'first-contentful-paint')?.startTime ?? 0"
    )
    assert first < 1000


def test_the_table_scrolls_to_its_end_sorts_and_searches(page, site):
    page.open(site.base + "/run/run0/latents")
    assert 0 < page.js(f"document.querySelectorAll('{ROW}').length") < 48
    page.js("document.querySelector('.vbody').scrollTop = 1e9")
    page.until(f"[...document.querySelectorAll('{ROW} .id')].some((one) => one.innerText === '47')")
    page.until("location.search.includes('at=')")
    page.click(".vhead span", 1)  # by density
    page.until("location.search.includes('sort=density')")
    top = site.json("/run/run0/latents.json?sort=density&desc=1&limit=2")["table"]["rows"]
    page.until(f"document.querySelector('{ROW} .id')?.innerText === '{top[0]['id']}'")
    page.press("j")
    page.press("j")
    page.press("Enter")
    page.until("document.documentElement.dataset.ready === 'latent'")
    assert f"/latent/{top[1]['id']}?" in page.js("location.href")
    page.press("k")  # the table's order goes on in the latents' pages
    page.until(f"location.pathname.endsWith('/latent/{top[0]['id']}')")
    page.js("history.go(-2)")
    page.until(f"document.querySelector('{ROW} .id')?.innerText === '{top[0]['id']}'")
    page.press("/")
    for letter in "import":
        page.press(letter)
    page.until("location.search.includes('q=import')")
    found = site.json("/run/run0/latents.json?q=import")["table"]["total"]
    page.until(f"document.querySelector('.bar .num').innerText.startsWith('{found} of 48') || {found} === 48")


def test_a_latent_shows_examples_notes_and_effects(page, site):
    latent = site.json("/run/run0/latents.json?sort=count&desc=1")["table"]["rows"][0]["id"]
    page.open(f"{site.base}/run/run0/latent/{latent}")
    assert page.js("document.querySelectorAll('.example').length") >= 3
    assert page.js("document.querySelectorAll('svg.chart').length") >= 2
    page.hover(".text span.focus")
    page.until("document.getElementById('tip')?.innerText.length > 1")
    for number, kind in ((1, "intervals"), (2, "random"), (3, "near"), (0, "")):
        page.click(".tabs button", number)
        assert page.js("new URLSearchParams(location.search).get('show') ?? ''") == kind
        assert page.js("document.querySelectorAll('.example').length") >= 1
    page.press("w")
    page.js("[...document.querySelectorAll('.where button')].find((one) => one.innerText === 'ablate').click()")
    page.until("document.querySelector('.effect')")
    page.js("[...document.querySelectorAll('.where button')].find((one) => one.innerText === 'more text').click()")
    page.js("document.querySelector('textarea').value = 'it is <b>markup</b>'")
    page.js("[...document.querySelectorAll('button')].find((one) => one.innerText === 'Save').click()")
    page.until("[...document.querySelectorAll('span')].some((one) => one.innerText === 'saved')")
    page.open(f"{site.base}/run/run0/latent/{latent}")
    assert page.js("document.querySelector('textarea').value") == "it is <b>markup</b>"
    page.until("[...document.querySelectorAll('h2')].some((one) => one.innerText.startsWith('Counterparts in run1'))")
    assert page.js("document.querySelectorAll('main b, main script').length") == 0 or page.js(
        "![...document.querySelectorAll('main b')].some((one) => one.innerText === 'markup')"
    )
    page.press("?")
    assert page.js("document.querySelectorAll('.sheet dt').length") >= 5
    page.press("Escape")
    page.press("t")
    assert page.js("document.documentElement.dataset.theme") == "dark"
    page.press("t")
    site.json(f"/run/run0/latent/{latent}/note.json", method="POST", body={"note": "", "tags": []})


def test_a_prompt_is_read_ablated_and_steered_and_the_link_brings_it_back(page, site):
    page.open(site.base + "/run/run0/prompt")
    page.until("document.querySelectorAll('.text span.pick').length > 10")
    page.click(".text span.pick", 3)
    page.until("location.search.includes('token=3')")
    page.js("[...document.querySelectorAll('button')].find((one) => one.innerText.startsWith('ablate each')).click()")
    page.until(
        "[...document.querySelectorAll('.small')].some((one) => one.innerText.includes('loss without it (exact)'))"
    )
    page.js("[...document.querySelectorAll('.line button')].find((one) => one.innerText === 'steer').click()")
    page.until("document.querySelector('.slider')")
    page.js(
        "(() => { const range = document.querySelector('.slider input'); range.max = 50; range.value = 40;"
        " range.dispatchEvent(new Event('input')); })()"
    )
    page.click("#steer")
    page.until("document.getElementById('said-steered')")
    said = page.js(
        "[document.getElementById('said-unchanged').innerText, document.getElementById('said-steered').innerText]"
    )
    assert said[0] != said[1]
    address = page.js("location.href")
    page.open(address)
    page.until("document.getElementById('said-steered')")
    assert said == page.js(
        "[document.getElementById('said-unchanged').innerText, document.getElementById('said-steered').innerText]"
    )


def test_comparing_follows_the_threshold(page, site):
    page.open(site.base + "/compare?a=run0&b=run1&threshold=0.9")
    before = page.js("document.querySelector('tbody').innerText")
    page.js(
        "(() => { const range = document.querySelector('input[type=range]'); range.value = 0.15;"
        " range.dispatchEvent(new Event('input')); })()"
    )
    assert page.js("document.querySelector('tbody').innerText") != before
    assert "threshold=0.15" in page.js("location.href")


def test_a_cluster_opens_as_a_cloud(page, site):
    page.open(site.base + "/run/run0/manifolds?latents=1,2,3")
    page.until("document.querySelector('.plot canvas, .plot .gl-container')")
    page.until("document.querySelectorAll('svg .node').length === 3")


def test_an_exported_folder_opens_from_the_disk(page, workspace, tmp_path):
    export.folder(workspace, tmp_path / "site", show=False)
    page.open((tmp_path / "site" / "index.html").as_uri())
    page.js("location.hash = '#/run/run0/latents?sort=density&desc=1'")
    page.until("document.documentElement.dataset.ready === 'latents' && document.querySelector('.vrow')")
    page.press("j")
    page.press("Enter")
    page.until("document.documentElement.dataset.ready === 'latent' && document.querySelector('.example')")
    page.press("j")
    page.until("document.querySelectorAll('.example').length")
    page.js("location.hash = '#/run/run0/latents?q=import'")
    page.until("document.documentElement.dataset.ready === 'latents'")
    start = time.monotonic()
    page.js("location.hash = '#/run/run0/latent/40'")
    page.until("document.querySelector('h1')?.innerText.includes('40')")
    assert time.monotonic() - start < 1.0


def test_a_single_file_opens_from_the_disk(page, workspace, tmp_path):
    export.pages(workspace, tmp_path, [5])
    page.open((tmp_path / "run0-latent-5.html").as_uri())
    assert page.js("document.documentElement.dataset.ready") == "latent"
    assert page.js("document.querySelectorAll('.example').length") >= 1


def test_rows_without_text_are_shown_by_their_numbers(chromium, tmp_path):
    chromium.resize(1280)
    workspace = bare(tmp_path)
    with served(workspace) as bare_site:
        latent = bare_site.json("/run/bare/latents.json?sort=count&desc=1")["table"]["rows"][0]["id"]
        for kind in ("top", "intervals", "random", "near"):
            chromium.open(f"{bare_site.base}/run/bare/latent/{latent}?show={kind}")
            said = chromium.js("document.getElementById('main').innerText")
            assert "never active" not in said
            assert "null" not in said
            assert "row " in said
            assert "ablate" not in said
        chromium.open(f"{bare_site.base}/run/bare/latents")
        assert "24 latents on 330 rows" in chromium.js("document.getElementById('main').innerText")
