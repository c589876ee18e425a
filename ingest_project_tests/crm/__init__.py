"""CRM: from messages on a topic to rows, exactly once, whatever the messages are."""
