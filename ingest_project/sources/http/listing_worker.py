"""The process that parses one large page of a listing: whatever a hostile one does, it does to this process.

Run by http_listing.py as a script in a confined process: the page is its standard input, each entry a line of its
standard output, and the facts of the page, or why it is no listing, go to the file that it is told.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Parse standard input."""
    from ingest_project.sources.http import listing as http_listing  # noqa: PLC0415 - as a script; the other way it imports this
    from ingest_project.sources.http.listing_page import NotAListingError, PageFacts, counted  # noqa: PLC0415

    outcome, content_type = Path(sys.argv[1]), sys.argv[2]
    facts = PageFacts()
    told: PageFacts | NotAListingError = facts
    try:
        body = sys.stdin.buffer.read()
        for entry in counted(http_listing.page_entries(body, content_type, facts), facts):
            sys.stdout.write(http_listing.as_line(entry) + "\n")
    except NotAListingError as error:
        told = error
    sys.stdout.flush()
    outcome.write_text(http_listing.as_outcome(told), encoding="utf-8")


if __name__ == "__main__":
    main()
