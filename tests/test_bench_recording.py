"""The recording of the README shows what was on the screen, and loads nothing."""

import re
from xml.etree import ElementTree

from autoresearch_jax.common import paths
from bench import recording

SVG = "{http://www.w3.org/2000/svg}"
PICTURE = paths.template() / "docs" / "demo.svg"
FRAMES = [
    (0.0, "$\n"),
    (1.0, "$ demo\n"),
    (3.0, "$ demo\n\x1b[32m0 keep\x1b[39m  3.5 <b>\nworking\n"),
    (41.0, "$ demo\n\x1b[32m0 keep\x1b[39m  3.5 <b>\n$\n"),
]


def shown(root, seconds):
    """Return the words that are visible then, by the rules of the animation."""
    style = root.find(f"{SVG}style").text
    total = float(re.search(r"g\{animation:([\d.]+)s", style)[1])
    words = []
    for group in root.iter(f"{SVG}g"):
        steps = re.search(rf"@keyframes k{group.get('id')[1:]}\{{(.*?)\}}\}}", style)[1]
        visible = None
        for at, what in re.findall(r"([\d.]+)%(?:,to)?\{visibility:(\w+)", steps):
            if 100 * seconds / total >= float(at) - 0.01:
                visible = what
        if visible == "visible":
            words += [text.text for text in group.iter(f"{SVG}text")]
    return sorted(words)


def test_each_screen_is_shown_in_its_time():
    root = ElementTree.fromstring(recording.svg(1.0, FRAMES))
    assert shown(root, 0.0) == ["$"]
    assert shown(root, 1.0) == ["$ demo"]
    assert shown(root, 2.0) == sorted(["$ demo", "0 keep", "3.5 <b>", "working"])
    assert shown(root, 1.0 + 40 / 2) == sorted(["$ demo", "0 keep", "3.5 <b>", "$"])
    assert "2 times as fast" in root.find(f"{SVG}title").text
    colours = {text.text: text.get("fill") for text in root.iter(f"{SVG}text")}
    assert colours["0 keep"]
    assert colours["working"] is None


def test_without_motion_the_last_screen_is_shown():
    root = ElementTree.fromstring(recording.svg(1.0, FRAMES))
    last = [g for g in root.iter(f"{SVG}g") if g.get("class") != "gone"]
    words = [text.text for group in last for text in group.iter(f"{SVG}text")]
    assert sorted(words) == shown(root, 1.0 + 40 / 2)
    assert "(prefers-reduced-motion:reduce)" in root.find(f"{SVG}style").text


def test_the_picture_of_the_readme_is_small_and_loads_nothing():
    text = PICTURE.read_text()
    assert len(text) < 200_000
    assert re.findall(r"https?://[^\"]*", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"<(script|image|use|foreignObject)\b|@import|@font-face", text)
