"""The state of attachment events, attachments and download attempts."""
