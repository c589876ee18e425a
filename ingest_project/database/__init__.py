"""The relational database under the stores and the ledger: its tables, its engine and its migrations.

One database, one migration history: a file's rows and its ledger entry change in one transaction.
"""
