"""Figures as SVG within a page: their text is the page's, and their colours are its variables.

A figure is drawn once, in the colours of `COLOURS`, and each of them is replaced by a variable of
the style sheet, so that light and dark are the page's choice.
"""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

COLOURS = {
    "text": "#000001",
    "muted": "#000002",
    "line": "#000003",
    "blue": "#0072b2",
    "orange": "#d55e00",
    "green": "#009e73",
    "grey": "#767676",
}
"""Variables of the style sheet, and the colours that stand for them while a figure is drawn."""

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_HREF = f"{{{_XLINK}}}href"
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def inline_svg(figure: Figure, name: str, description: str) -> Markup:
    """Return a figure as an <svg> element.

    name: begins the ids in it, so that those of several figures differ. description: for those who
    cannot see it.
    """
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", transparent=True, metadata=_NO_METADATA)
    text = file.getvalue()
    for variable, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    root = ElementTree.fromstring(text)
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for element in root.iter():
        _localise(element, name)
    for attribute in ("width", "height"):
        del root.attrib[attribute]
    root.set("role", "img")
    root.set("aria-label", description)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _localise(element: ElementTree.Element, name: str) -> None:
    """Make ids the figure's own, and take the font's name out."""
    for key, value in element.attrib.items():
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif key == _HREF:
            element.set(key, value.replace("#", f"#{name}-", 1))
        elif key == "style":
            sized = re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", value)
            element.set(key, re.sub(r"font-family: [^;]*; ", "", sized))
        elif value.startswith("url(#"):
            element.set(key, value.replace("url(#", f"url(#{name}-"))
