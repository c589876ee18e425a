"""Tests of declared streams."""
