"""OneLake and other ADLS Gen2 accounts: addresses, clients, and what their failures mean. Below stores and sources."""
