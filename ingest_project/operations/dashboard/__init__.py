"""The dashboard's pages and the HTTP server of the monitor."""
