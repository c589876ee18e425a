"""OneLake and ADLS Gen2: addresses, accounts, clients, errors."""
