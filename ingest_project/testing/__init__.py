"""Contract test suites for packages with their own readers, sources, stores, decoders or alert channels.

Each suite is a pytest class: subclass it in a test module, under a name that begins with `Test`, and override its
fixtures. The shipped parts pass the same suites. Only this package imports pytest, and no other module imports this
package.
"""

import pytest

pytest.register_assert_rewrite(
    *(f"{__name__}.{part}" for part in ("alert_channels", "decoders", "readers", "sources", "stores"))
)
