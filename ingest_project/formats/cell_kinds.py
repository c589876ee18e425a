"""What kind of cell a workbook holds: rules for text are for cells of text alone."""

TEXT = "s"
NUMBER = "n"
# A number that is shown as so many per cent.
PERCENT = "p"
DATE = "d"
# A length of time or a clock time without a day.
DURATION = "t"
BOOLEAN = "b"
ERROR = "e"
# A formula whose result nobody has worked out.
FORMULA = "f"

# The column that tells the kinds of another one's cells.
KIND_OF = "{}_kind".format
