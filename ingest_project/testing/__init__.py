"""Contract suites of readers, sources, stores, decoders and alert channels, for packages that bring their own.

Each is a class of tests for pytest: subclass it in a module of tests, under a name that begins with `Test`, and
override its fixtures. The shipped parts pass the same suites. Only this package imports pytest; nothing else imports
this package.
"""

import pytest

pytest.register_assert_rewrite(
    *(f"{__name__}.{part}" for part in ("alert_channels", "decoders", "readers", "sources", "stores"))
)
