"""What the headers of a page of a listing say about the next one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from requests.utils import parse_header_links

from ingest_project.sources.http.listing_page import Link, printable

# GitLab's and WordPress's.
NEXT_PAGE, PAGE, PAGES = "X-Next-Page", "X-Page", "X-Total-Pages"


def next_links(headers: Mapping[str, str]) -> Iterator[Link]:
    """The addresses of `Link: <…>; rel="next"`."""
    for stated in parse_header_links(headers.get("Link", "")):
        target = stated.get("url", "")
        if target and "next" in stated.get("rel", "").lower().split():
            yield Link(target, leads_on=True)


def unfinished_by(headers: Mapping[str, str]) -> str | None:
    """Why a page is known not to be all, where the headers do not say where the next one is."""
    if next(next_links(headers), None) is not None:
        return None
    if headers.get(NEXT_PAGE, "").strip():
        return f"it is one page of several ({NEXT_PAGE}: {printable(headers[NEXT_PAGE])[:20]})"
    page, pages = headers.get(PAGE, "1").strip(), headers.get(PAGES, "").strip()
    if _is_number(page) and _is_number(pages) and int(page) < int(pages):
        return f"it is page {page} of {pages}, and no header says where the next one is"
    return None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < len("1000000000")
