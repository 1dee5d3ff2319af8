import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import write_digit
from tests.kitchen import put, read_lines
from utils import readers, review, synthetic
from utils.review import ASIDE, LEARNT, Reviewed
from utils.sources import DataSource, SourceError

HOSTILE = 'a"><img src=x onerror=alert(1)>.png'
# A label file can hold these.
ODD_NAMES = [
    HOSTILE,
    "</script><script>alert(2)</script>.png",
    "<!--<script>.png",
    "'><b onclick='alert(3)'>.png",
    "two  blanks, a comma;.png",
    "#comment.png",
    " blank in front.png",
    "Zähler/köln ⑧ 数字 😀.png",
    "e\u0301 (decomposed).png",
    "\ufefffirst.png",
    "tab\tin between.png",
    "line\u2028separator\x85.png",
    "right\u202eto left.png",
    "a & b &amp; %20.png",
    "images/3.4",
]
# And can't hold these.
UNNAMED = [
    "back\\slash.png",
    "line\nfeed.png",
    "carriage\rreturn.png",
    "blank at the end.png ",
    "no\udcffutf.png",
    "ideographic.png\u3000",
]


def reviewed(file="a.png", label="3.4", old=("3.4", 0.9), new=("3.4", 0.9), part=LEARNT, image=None) -> Reviewed:
    image = np.full((32, 20, 3), 128, np.uint8) if image is None else image
    return Reviewed(file, image, label, old, new, part)


class Elements(HTMLParser):
    """Collects tags with attributes and the text of each script."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.scripts, self._in_script = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"
        self.scripts += [""] * self._in_script

    def handle_endtag(self, tag):
        self._in_script = False

    def handle_data(self, data):
        if self._in_script:
            self.scripts[-1] += data


def test_suspicious_ones_come_first_then_errors_then_the_rest():
    entries = [
        reviewed("right", new=("3.5", 0.99)),
        reviewed("error", old=("3.4", 0.9), new=("7.0", 0.5)),
        reviewed("doubtful", old=("7.0", 0.5), new=("7.0", 0.99)),
        reviewed("surer error", old=("3.4", 0.9), new=("7.1", 0.8)),
        reviewed("a tenth off", old=("3.3", 1.0), new=("3.3", 1.0)),
        reviewed("surest", old=("7.0", 0.8), new=("7.0", 0.7)),
    ]
    shown = [entry.file for entry in review.ordered(entries, 100)]
    assert shown == ["surest", "doubtful", "surer error", "error", "right", "a tenth off"]


@pytest.mark.parametrize(
    ("label", "reading", "nb_classes", "suspicious"),
    [
        ("0.0", "9.9", 100, False),
        ("0.0", "9.8", 100, True),
        ("3.4", "3.5", 100, False),
        ("3.4", "3.6", 100, True),
        ("0", "9", 10, True),
        ("3", "3", 10, False),
        ("3.4", "3", 10, False),
        ("3.6", "3", 10, True),
    ],
)
def test_both_models_against_the_label(label, reading, nb_classes, suspicious):
    entry = reviewed(label=label, old=(reading, 0.6), new=(reading, 0.7))
    assert review.is_suspicious(entry, nb_classes) == review.is_wrong(entry, nb_classes) == suspicious


def test_models_that_disagree_do_not_doubt_the_label():
    entry = reviewed(old=("7.1", 0.9), new=("6.9", 0.9))
    assert not review.is_suspicious(entry, 100)
    assert review.is_wrong(entry, 100)


def test_models_that_read_a_tenth_apart_doubt_the_label_together():
    """What is learnt moves many a reading by a tenth."""
    assert review.is_suspicious(reviewed(old=("7.0", 0.9), new=("6.9", 0.9)), 100)
    assert not review.is_suspicious(reviewed(label="3", old=("7", 0.9), new=("6", 0.9)), 10)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_found_again_through_a_label_file(folder, name):
    put(folder / "a.png").rename(_parent(folder / name))
    data = read_lines(folder, f"# heading\n{review.name_in_label_file(name)}\t7.1\n")
    assert data.files == (name,)
    assert data.tenths.tolist() == [71]


@pytest.mark.parametrize("name", [*UNNAMED, ""])
def test_names_that_a_label_file_cannot_hold(folder, name):
    assert review.name_in_label_file(name) is None
    if name.isascii() and name:
        # The reader, too, would not find them.
        put(folder / "a.png").rename(folder / name)
        with pytest.raises(SourceError):
            read_lines(folder, f"{name}\t7.1\n")


def test_strangers_names_stay_text():
    entries = [reviewed(file) for file in ODD_NAMES + UNNAMED]
    page = review.page("<b>title</b>", entries, 100, "</code><script>alert(4)</script>")
    found = Elements(page)
    plain = Elements(review.page("t", [reviewed("a.png")] * len(entries), 100, "bad"))
    # The warning of names that can't be written, on the page and on each card, is all that is added.
    added = len(found.tags) - len(plain.tags)
    assert added == 1 + len(UNNAMED)
    assert [script == review.SCRIPT for script in found.scripts] == [False, True]
    assert json.loads(found.scripts[0]) == [review.name_in_label_file(entry.file) for entry in entries]
    assert not [key for _, attrs in found.tags for key in attrs if key.startswith("on")]
    assert html.escape(HOSTILE) in page
    assert r"line\nfeed.png" in page
    assert r"right\u202eto left.png" in page
    page.encode("utf-8")


def test_nothing_comes_from_outside():
    page = review.page("t", [reviewed(), reviewed(image=np.zeros((16, 10, 1), np.uint8))], 100, "bad")
    found = Elements(page)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page.replace(review.SCRIPT, ""))
    assert not re.search(r"https?:|fetch|XMLHttpRequest|WebSocket|import|innerHTML|eval", review.SCRIPT)
    sources = [attrs[key] for _, attrs in found.tags for key in ("src", "href", "action") if key in attrs]
    assert len(sources) == 3
    assert all(source.startswith("data:") for source in sources)


def test_policy_runs_this_script_alone():
    digest = base64.b64encode(hashlib.sha256(review.SCRIPT.encode()).digest()).decode()
    tags = Elements(review.page("t", [reviewed()], 100, "bad")).tags
    (policy,) = [attrs["content"] for _, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert f"script-src 'sha256-{digest}';" in policy
    # Nothing that a policy should rule stands before it.
    assert [tag for tag, _ in tags[:4]] == ["html", "head", "meta", "meta"]


def test_counts_and_kinds():
    entries = [
        reviewed("suspicious", old=("7.0", 0.8), new=("7.0", 0.7), part=ASIDE),
        reviewed("wrong", new=("7.1", 0.8)),
        *[reviewed(f"{number}.png") for number in range(1998)],
    ]
    page = review.page("t", entries, 100, "bad")
    assert "2,000 pictures: 1 with a label that looks wrong, 2 still read wrong by the new model, 1 kept aside" in page
    for shown in ("All (2000)", "Label looks wrong (1)", "Still wrong (2)", "Kept aside (1)"):
        assert shown in page
    assert "can't stand in" not in page
    cards = [attrs.get("class") for tag, attrs in Elements(page).tags if tag == "li"]
    assert cards == ["suspicious wrong aside", "wrong", *[""] * 1998]


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_kept_to_the_pixel(channels, rng):
    image = rng.integers(0, 256, (32, 20, channels)).astype(np.uint8)
    page = review.page("t", [reviewed(image=image)], 100, "bad")
    data = base64.b64decode(re.search(r"data:image/png;base64,([^']+)'", page)[1])
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(decoded.reshape(32, 20, channels)[..., ::-1], image)


@pytest.mark.parametrize(
    ("nb_classes", "label", "good", "bad"),
    [
        (100, "3.4", ["0.0", "9.9"], ["3", "3.45", "34", "N", ""]),
        (10, "3", ["0", "9", "3.4"], ["10", "3.", "N", ""]),
    ],
)
def test_labels_that_the_field_takes(nb_classes, label, good, bad):
    reading = (label, 0.9)
    tags = Elements(review.page("t", [reviewed(label=label, old=reading, new=reading)], nb_classes, "bad")).tags
    (pattern,) = [attrs["pattern"] for _, attrs in tags if "pattern" in attrs]
    assert all(re.fullmatch(pattern, text) for text in good)
    assert not any(re.fullmatch(pattern, text) for text in bad)


def test_a_page_without_pictures():
    assert "0 pictures: 0 with" in review.page("t", [], 10, "bad")


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _digits(folder: Path, names: list[str]) -> list[Reviewed]:
    """Synthetic digits, written under these names; of the first both models say that its label is wrong."""
    digits = synthetic.draw(len(names), 3)
    entries = []
    for number, (name, image, tenths) in enumerate(zip(names, digits.images, digits.tenths, strict=True)):
        write_digit(folder, digits, number).rename(_parent(folder / name))
        true, other = f"{tenths / 10:.1f}", f"{(tenths + 20) % 100 / 10:.1f}"
        old = (other, 0.6 + 0.03 * number % 0.4) if number % 3 else (true, 0.97)
        new = (other if number % 5 == 4 else true, 0.995 - 0.03 * number)
        entries.append(Reviewed(name, image, true if number else other, old, new, LEARNT if number % 4 != 3 else ASIDE))
    return entries


@pytest.mark.slow
def test_corrected_labels_come_back_through_the_label_file(folder, browser, tmp_path):
    entries = _digits(folder, ["odd.png", *ODD_NAMES, *UNNAMED])
    path = tmp_path / "review.html"
    path.write_text(review.page("Review", entries, 100, str(folder)), encoding="utf-8")
    browser.open(path)
    assert browser.run("document.querySelector('bdi').textContent") == "odd.png"
    assert browser.run("document.getElementById('state').textContent") == "No changes"

    # What is no label is marked and not downloaded.
    browser.type("li:nth-child(2) .label", "34")
    browser.click("#download")
    assert browser.run("document.querySelectorAll('li.invalid.changed').length") == 1
    assert "Not downloaded: 1 label is not understood" in browser.run("document.getElementById('message').innerText")
    assert browser.run("document.activeElement === document.querySelector('li:nth-child(2) .label')")

    browser.type("li:nth-child(2) .label", "1,2")
    browser.click("li:nth-child(1) .take")
    browser.click("li:nth-child(3) .out")
    assert browser.run("document.getElementById('state').textContent") == "3 changes"
    browser.click("#download")
    text = browser.downloaded("labels.txt").decode("utf-8")
    shown = review.ordered(entries, 100)
    expected = {entry.file: entry.label for entry in shown if review.name_in_label_file(entry.file)}
    expected |= {"odd.png": shown[0].new[0], shown[1].file: "1.2"}
    (folder / "labels.txt").write_bytes(text.encode("utf-8"))
    declared = {"name": "corrected", "type": "label_file", "path": str(folder), "labels": "labels.txt"}
    data = readers.read(DataSource.from_dict(declared, "DATA_SOURCES"), 32, 20, 3, 100, 0)
    found = {file: f"{tenths / 10:.1f}" for file, tenths in zip(data.files, data.tenths, strict=True)}
    assert expected.pop(shown[2].file)
    assert found == expected
    assert data.skipped == {"not readable": 1}
    assert text.count("# can't be named here: ") == len(UNNAMED)
    assert browser.complaints == []
    assert [url for url in browser.requested if not url.startswith(("data:", "blob:"))] == [path.as_uri()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("smuggled", "directive"),
    [
        ("<img src='data:,' onerror='alert(1)'>", "script-src-attr"),
        ("<img src='http://127.0.0.1:9/a.png'>", "img-src"),
        ("<iframe src='http://127.0.0.1:9/'>", "frame-src"),
    ],
)
def test_policy_stops_what_gets_past_the_escaping(browser, tmp_path, smuggled, directive):
    (tmp_path / "review.html").write_text(review.page("Review", [reviewed()], 100, "bad"), encoding="utf-8")
    browser.open(tmp_path / "review.html")
    insert = f"document.body.insertAdjacentHTML('beforeend', {json.dumps(smuggled)})"
    listen = "document.addEventListener('securitypolicyviolation', event => tell(event.violatedDirective))"
    assert browser.run(f"new Promise(tell => {{ {listen}; {insert} }})") == directive


@pytest.mark.slow
def test_two_thousand_pictures_in_the_browser(browser, tmp_path):
    image = np.full((32, 20, 3), 128, np.uint8)
    entries = [
        reviewed(
            f"{number}.png",
            new=("7.0" if number < 5 else "3.4", 0.9),
            part=ASIDE if number % 2 else LEARNT,
            image=image,
        )
        for number in range(2000)
    ]
    (tmp_path / "review.html").write_text(review.page("Review", entries, 100, "bad"), encoding="utf-8")
    browser.open(tmp_path / "review.html")
    visible = "[...grid.children].filter(card => getComputedStyle(card).display !== 'none').length"
    for kind, count in {"wrong": 5, "aside": 1000, "all": 2000}.items():
        browser.click(f"[name=show][value={kind}]")
        assert browser.run(visible) == count
    assert browser.run("document.querySelector('[value=suspicious]').disabled")
    browser.run("document.querySelectorAll('.out').forEach(box => box.click())")
    assert browser.run("document.getElementById('state').textContent") == "2000 changes"
    browser.click("#download")
    assert "no picture is left" in browser.run("document.getElementById('message').textContent")
    browser.click(".out")
    browser.click("#download")
    assert browser.downloaded("labels.txt").count(b"\tN\n") == 1999
    assert browser.complaints == []
