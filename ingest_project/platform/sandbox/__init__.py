"""Run code on untrusted bytes in a limited, killable process without our secrets."""
