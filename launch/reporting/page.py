"""The page around a report's sections: complete in one file, styled for light and dark, wide and narrow screens."""

from collections.abc import Sequence
from importlib import resources

from launch.reporting.markup import Markup, joined, tag

ICON = "data:,"
"""No icon, which browsers would ask a server for."""


def page(title: str, header: Markup, sections: Sequence[tuple[str, Markup]], footer: Markup) -> str:
    """A page of HTML.

    Args:
        title: Of the window.
        header: Above the sections.
        sections: (heading, content), in order.
        footer: Below them.
    """
    style = resources.files("launch.reporting").joinpath("style.css").read_text(encoding="utf-8")
    names = [(heading, heading.partition(" ")[0].lower()) for heading, _ in sections]
    links = tag("nav", *(tag("a", heading, href=f"#{name}") for heading, name in names))
    body = [
        tag("section", tag("h2", heading), content, id=name)
        for (heading, name), (_, content) in zip(names, sections, strict=True)
    ]
    head = joined(
        [
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("title", title),
            tag("link", rel="icon", href=ICON),
            Markup(f"<style>{style}</style>"),
        ]
    )
    main = tag("main", header, links, *body, tag("footer", footer))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{main}</body></html>\n'


def cards(facts: Sequence[tuple[str, object, str]]) -> Markup:
    """(what, how much, more of it): the figures that one looks for first."""
    return tag(
        "dl",
        *(
            tag("div", tag("dt", what), tag("dd", value), tag("dd", more, class_="more") if more else "")
            for what, value, more in facts
        ),
        class_="cards",
    )
