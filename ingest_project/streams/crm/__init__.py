"""CRM messages to relational tables: opportunities, projects, and unidentified messages."""
