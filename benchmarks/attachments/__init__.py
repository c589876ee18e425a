"""From events on the topic to files in the store and results in Delta, against a web server of this machine."""
