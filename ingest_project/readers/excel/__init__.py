"""The readers of xlsx and xls workbooks."""
