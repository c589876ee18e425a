"""Parse one large page of a listing in a confined process, so that a hostile page harms this process only.

listing.py runs this file as a script. It reads the page from standard input, writes one line per entry to standard
output, and writes the facts of the page, or the reason why it is no listing, to the file named on the command line.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ingest_project.sources.http import listing
from ingest_project.sources.http.page import NotAListingError, PageFacts, counted


def main() -> None:
    """Parse the page on standard input."""
    outcome, content_type = Path(sys.argv[1]), sys.argv[2]
    facts = PageFacts()
    told: PageFacts | NotAListingError = facts
    try:
        body = sys.stdin.buffer.read()
        for entry in counted(listing.page_entries(body, content_type, facts), facts):
            sys.stdout.write(listing.as_line(entry) + "\n")
    except NotAListingError as error:
        told = error
    sys.stdout.flush()
    outcome.write_text(listing.as_outcome(told), encoding="utf-8")


if __name__ == "__main__":
    main()
