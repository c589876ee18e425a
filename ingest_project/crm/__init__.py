"""CRM messages to relational tables: opportunities, projects, and what could not be identified."""
