"""Commands over files, quarantine, reader profiles and datasets."""
