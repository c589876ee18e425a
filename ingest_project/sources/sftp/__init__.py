"""SFTP servers as a source."""
