"""Somebody is told when runs or sensors fail: once when it begins, once when it is over."""
