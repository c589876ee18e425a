"""FTP and FTPS servers as a source."""
