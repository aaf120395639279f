"""HTML as a tree: everything is escaped by the serialiser, and nothing is ever pasted together as text."""

import re
from collections.abc import Iterable, Mapping, Sequence
from xml.etree import ElementTree

from lab.page.style import paper

Element = ElementTree.Element
SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}"
# What XML does not allow, and what is better not in a page: control characters but tab and newline, lone surrogates.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def el(tag: str, *children: "Element | str | None", **attributes: str | None) -> Element:
    """An element: `el("td", "text", el("b", "bold"), class_="number")`. None is left out."""
    found = {name.rstrip("_").replace("_", "-"): clean(value) for name, value in attributes.items() if value is not None}
    element = Element(tag, found)
    for child in children:
        add(element, child)
    return element


def add(element: Element, child: "Element | str | None") -> None:
    """Append text or an element."""
    if child is None:
        return
    if not isinstance(child, str):
        element.append(child)
    elif len(element):
        element[-1].tail = (element[-1].tail or "") + clean(child)
    else:
        element.text = (element.text or "") + clean(child)


def clean(text: str) -> str:
    """Text without control characters."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def table(
    head: Sequence[str | tuple[str, str]], rows: Iterable[Sequence[Element]], numbers: Iterable[int] = (), headless: bool = False
) -> Element:
    """A table that scrolls by itself: heads with their units, rows of cells, `numbers` the columns of figures."""
    right = set(numbers)
    cells = []
    for number, title in enumerate(head):
        text, unit = (title, "") if isinstance(title, str) else title
        kind = "number" if number in right else None
        cells.append(el("th", text, el("small", unit) if unit else None, class_=kind, scope="col"))
    top = None if headless else el("thead", el("tr", *cells))
    return el("div", el("table", top, el("tbody", *(el("tr", *row) for row in rows))), class_="scroll")


def section(name: str, title: str, *children: Element | str | None) -> Element:
    """A part with a heading of its own, to which `#name` leads."""
    return el("section", el("h2", title), *children, id=name)


def document(title: str, *children: Element | str | None, style: str = "") -> Element:
    """A page to be read, which needs nothing but itself; `style`: CSS of its own."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", title),
        el("style", paper() + style),
    )
    return el("html", head, el("body", *children), lang="en")


def page(html: Element) -> str:
    """The whole page as text."""
    return "<!DOCTYPE html>\n" + ElementTree.tostring(html, encoding="unicode", method="html") + "\n"


def drawing(text: str, prefix: str, label: str, colours: Mapping[str, str]) -> Element:
    """An SVG drawing of our own for a page: ids made unique by `prefix`, `colours` replaced, fonts the page's."""
    svg = ElementTree.fromstring(text)
    for parent in svg.iter():
        for child in list(parent):
            # A style sheet inside would apply to the whole page.
            if child.tag in (f"{SVG}metadata", f"{SVG}style") or (child.tag == f"{SVG}defs" and not len(child)):
                parent.remove(child)
    for element in svg.iter():
        element.tag = element.tag.removeprefix(SVG)
        attributes = {name.removeprefix(XLINK): value for name, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update({name: _attribute(name, value, prefix, colours) for name, value in attributes.items()})
    for size in ("width", "height"):
        svg.attrib.pop(size, None)
    svg.attrib.update({"role": "img", "aria-label": clean(label)})
    return svg


def _attribute(name: str, value: str, prefix: str, colours: Mapping[str, str]) -> str:
    if name == "id":
        return prefix + value
    if name == "href":
        return value.replace("#", f"#{prefix}", 1)
    value = value.replace("url(#", f"url(#{prefix}")
    if name == "style":
        value = re.sub(r"(font: [^;]*?)'DejaVu Sans'[^;]*", r"\1var(--sans)", value)
        for colour, variable in colours.items():
            value = value.replace(colour, variable)
    return value
