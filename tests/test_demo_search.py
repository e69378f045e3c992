"""`gpuopt demo --search`: one HTML file that needs nothing else, with every chapter and picture, and what its numbers must say."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gpuopt import cli, demos, drawing
from gpuopt.demos import report, search
from gpuopt.demos.setting import Setting

pytestmark = pytest.mark.once
VOID = {"meta", "img", "br", "link"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Page(HTMLParser):
    """What a page is made of: every tag with its attributes, texts by tag; a tag that is not closed in order is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The report of a quick run, and what the run said."""
    said = io.StringIO()
    path = demos.run_search(out=tmp_path_factory.mktemp("report") / "new", quick=True, stream=said)
    return path, said.getvalue()


def test_it_needs_nothing_else(made: tuple[Path, str]) -> None:
    """No script, no style sheet, no address: what is linked is on the page, what is shown is in the file."""
    text = made[0].read_text()
    page = Page(text)
    assert not page.of("script") and not page.of("link") and not page.of("iframe") and len(page.of("style")) == 1
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", text))
    named = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = [str(attributes["href"]) for attributes in page.of("a")]
    assert links and all(link.startswith("#") and link[1:] in named for link in links)
    assert all(str(a["src"]).startswith("data:image/png;base64,") for a in page.of("img"))


def test_every_chapter_is_there_with_its_pictures(made: tuple[Path, str]) -> None:
    path, said = made
    page = Page(path.read_text())
    assert path.name == search.NAME and str(path) in said.splitlines()[-1]
    titles = [t for t in page.texts["h2"] if t != "In short"]
    assert len(titles) == len(search.CHAPTERS) == len(page.of("section")) == 12
    assert len(page.texts["code"]) == 12 and page.texts["h1"] == [search.TITLE] and page.of("html")[0]["lang"] == "en"
    pictures = [base64.b64decode(str(a["src"]).partition(",")[2]) for a in page.of("img")]
    assert len(pictures) >= 11 and all(p.startswith(b"\x89PNG") and p.endswith(b"IEND\xaeB`\x82") for p in pictures)
    assert len(set(pictures)) == len(pictures) and all(a["alt"] for a in page.of("img"))
    for attributes, picture in zip(page.of("img"), pictures, strict=True):  # one scale, so that letters are of one size
        pixels = int.from_bytes(picture[16:20], "big")
        assert int(str(attributes["width"])) == pytest.approx(pixels * 96 / 144, abs=1)
    assert "`" not in "".join(page.texts["p"])
    for title in titles:
        assert f"{title.partition('. ')[0]:>2}. {title.partition('. ')[2]} (" in said


def test_what_it_found_is_what_it_measured(made: tuple[Path, str]) -> None:
    """The numbers of a few chapters, as the page says them."""
    found = "\n".join(Page(made[0].read_text()).texts["li"])
    assert re.search(r"train at a rate of 0\.0\d+\. The loss falls fastest at", found)
    assert re.search(r"batches of (\d+) reach a loss soonest", found)
    assert re.search(r"Train with \w+ at peak lr=\S+: accuracy 0\.\d+ after 2 passes", found)
    assert re.search(r"With 90 % of the weights at zero", found)
    assert re.search(r"3\.\d times fewer bytes", found)


def test_it_opens_in_a_browser(made: tuple[Path, str], tmp_path: Path) -> None:
    """In the one that is installed; where there is none, the page parses, as the other tests say."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    shot = tmp_path / "shot.png"
    if browser is not None:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,6000", f"--screenshot={shot}"]
        subprocess.run([browser, *options, made[0].as_uri()], check=True, capture_output=True, timeout=120)
        assert shot.read_bytes().startswith(b"\x89PNG")
    assert Page(made[0].read_text()).texts["title"] == [search.TITLE]


def test_a_page_says_what_it_is_given_and_no_more() -> None:
    """Text is text, whatever it looks like."""
    figure = drawing.figure(1, 1)
    section = report.Section('<b> & "', "a < b", "c > d", "if a < b:", [("x & y", figure)], [["<i>"], ["&amp;"]])
    page = Page(report.html("<t>", "", [section], ""))
    assert (
        page.texts["h2"][-1] == '1. <b> & "' and page.texts["code"] == ["if a < b:"] and page.texts["td"] == ["&amp;"]
    )
    assert page.of("img")[0]["alt"] == "x & y" and not page.of("b") and not page.of("i")
    assert report.table([]) == ""


def test_shap_and_lime_are_used_where_they_are_and_named_where_not(made: tuple[Path, str]) -> None:
    from importlib.util import find_spec

    said = made[1]
    for name in ("shap", "lime"):
        there = find_spec(name) is not None
        assert (f"{name.upper()} says that" in said) is there
        assert bool(re.search(rf"Not installed here: .*{name}", said)) is not there


def test_the_command_passes_its_options_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(demos, "run_search", lambda **options: given.append(options))
    assert cli.main(["demo", "--search", "--backend", "numpy", "--seed", "3", "--out", str(tmp_path), "--quick"]) == 0
    assert given == [{"backend": "numpy", "out": str(tmp_path), "quick": True, "seed": 3}]
    for wrong in (["--lr", "0.1"], ["--dtype", "float64"]):
        assert cli.main(["demo", "--search", *wrong]) == 2
        assert f"{wrong[0]} with --search" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["demo", "--search", "--all"])


def test_a_backend_that_cannot_run_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    assert cli.main(["demo", "--search", "--backend", "tpu", "--out", str(tmp_path)]) == 2
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_gives_the_same_data_and_weights() -> None:
    one, other = Setting(True, 3, "numpy"), Setting(True, 3, "numpy")
    assert one.network()["w1"].tobytes() == other.network()["w1"].tobytes()
    assert [r.tobytes() for r in one.batches(2)] == [r.tobytes() for r in other.batches(2)]
    assert one.fitted.coefs_[0].tobytes() == other.fitted.coefs_[0].tobytes()
